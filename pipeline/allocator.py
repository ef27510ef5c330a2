"""`memory_is_reused`: freed memory stays with the process while blocks are read, instead of going back to the system.

The C library returns large arrays to the system when they are freed, and Dask asks it to return small ones too. Who
decodes a block, frees it and decodes the next one then waits for the system to hand out empty pages again and
again: as long as for the decoding itself. For as long as any task of ours runs, pages are kept; after it they go back.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["memory_is_reused", "trim"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # malloc.h of glibc
_WHILE = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 << 20}
# What glibc comes to by itself in a process that has freed large arrays.
_AFTER = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 128 << 10, _MMAP_THRESHOLD: 32 << 20}

_lock = threading.Lock()
_inside = 0


@contextmanager
def memory_is_reused() -> Iterator[None]:
    """While any thread is inside, freed memory is kept for the next block; does nothing where there is no glibc."""
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def _count(step: int) -> None:
    global _inside
    libc = _glibc()
    with _lock:
        _inside += step
        if libc is None or _inside != max(step, 0):
            return
        for parameter, value in (_WHILE if step > 0 else _AFTER).items():
            libc.mallopt(parameter, value)
        if step < 0:
            libc.malloc_trim(0)


def trim() -> None:
    """Give freed memory back to the system, but not while any task is about to use it again."""
    libc = _glibc()
    with _lock:
        if libc is not None and not _inside:
            libc.malloc_trim(0)


@cache
def _glibc() -> Any:
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # no such thing on Windows
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
