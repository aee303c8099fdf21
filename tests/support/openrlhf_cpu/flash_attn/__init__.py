"""Stands in for flash-attn, which cannot be installed without CUDA, so that OpenRLHF can be imported."""

__version__ = "2.8.3"


def missing(*_: object) -> None:
    """Say what is not there.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError("flash-attn needs CUDA; leave packing and ring attention off")
