"""A Ray cluster of this machine alone that counts GPUs that it does not have, for OpenRLHF without CUDA."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

SHIM = Path(__file__).with_name("openrlhf_cpu")
_PATIENCE_S = 120
_SETTINGS = {
    "AGENTGYM_OPENRLHF_CPU": "1",
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}


@contextmanager
def ray_on_cpu(folder: Path, *, gpus: int, resources: Mapping[str, int] | None = None) -> Iterator[dict[str, str]]:
    """Run a cluster; yield the environment in which programs find it, and CUDA's stand-ins.

    Args:
        folder: where it writes; its path must be short, because sockets are below it.
        gpus: that it pretends to have.
        resources: that it offers beside them.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    paths = [str(SHIM), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | _SETTINGS | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--node-ip-address", "127.0.0.1",
        "--port", str(port), "--num-cpus", "4", "--num-gpus", str(gpus), "--include-dashboard", "false",
        "--resources", json.dumps(dict(resources or {})),
        "--object-store-memory", str(200 << 20), "--temp-dir", str(folder), "--disable-usage-stats",
    ]  # fmt: skip
    log = folder / "start.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, stdout=sink, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        _wait(process, port, log)
        yield environment | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        if "Ray runtime started" in log.read_text(encoding="utf-8", errors="replace"):
            return
        time.sleep(0.2)
    raise RuntimeError(f"Ray did not start:\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}")
