"""How the C library hands memory to a training process, and takes it back."""

from __future__ import annotations

import ctypes

_ARENA_MAX = -8  # M_ARENA_MAX in glibc's malloc.h


def share_heap() -> None:
    """Let all threads take memory from one heap, where the C library is glibc; best before there are threads.

    By default threads get arenas, each of which keeps what their tensors once took. With a thread for every episode,
    one that samples and one that learns, that is half of a small run's memory. Tensors are few and large, so nobody
    waits long for the heap's lock.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)


def give_back() -> None:
    """Give the free pages between blocks in use back to the system, where the C library is glibc.

    By itself it gives back what is free at the heap's end, and blocks beyond 32 MiB. It takes milliseconds, and what
    is taken next is a little slower.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
