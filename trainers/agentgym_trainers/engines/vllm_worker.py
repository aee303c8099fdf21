"""What runs inside vLLM's own workers: `worker_extension_cls` mixes it into them."""

from __future__ import annotations

from typing import Any


class WeightFiles:
    """Loads weights from a safetensors file that the trainer wrote on this machine."""

    model_runner: Any

    def load_weight_file(self, path: str) -> None:
        """Replace the weights in place, as a checkpoint's: names as transformers has them, whole tensors."""
        from safetensors.torch import load_file

        self.reload_weights(weights_iterator=iter(load_file(path).items()))  # type: ignore[attr-defined]
        self.repack_tied_head()

    def repack_tied_head(self) -> None:
        """Pack a tied head anew: vLLM's CPU build multiplies by a packed copy that a reload leaves as it was.

        Its embedding holds the new weights and its head the old ones, so sampled logprobs would drift from the
        trainer's without any error.
        """
        head = getattr(self.model_runner.get_model(), "lm_head", None)
        weight = getattr(head, "weight", None)
        # Where the packed copy is all there is (untied, on a CPU), the reload made it anew.
        if weight is None or weight.device.type != "cpu" or not weight.numel() or not hasattr(head, "cpu_linear"):
            return
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        dispatch_cpu_unquantized_gemm(head, remove_weight=False)
