"""A real `vllm serve` on this machine's CPU, listening on the loopback interface."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PATIENCE_S = 240


@contextmanager
def vllm_server(model: Any, folder: Path, *arguments: str) -> Iterator[str]:
    """Serve the shape of a model, with weights of its own; yield the URL."""
    model.config.save_pretrained(folder / "shape")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    # Not the command `vllm`: in the CPU build it looks for a distribution of that name and does not find one.
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "shape"),
        "--host", "127.0.0.1", "--port", str(port), "--skip-tokenizer-init", "--load-format", "dummy",
        "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "32", "--generation-config", "vllm",
        "--no-enable-chunked-prefill", "--max-num-batched-tokens", str(model.config.max_position_embeddings),
        "--enable-scale-out", "--worker-extension-cls", "agentgym_trainers.engines.vllm_worker.WeightFiles",
        *arguments,
    ]  # fmt: skip
    environment = os.environ | {
        "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING",
        # Its threads wait by spinning: with one on every core, whoever asks it hardly runs.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    log = folder / "server.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, stdout=sink, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, url, log)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise RuntimeError(f"vllm serve did not come up:\n{log.read_text(errors='replace')[-3000:]}")
