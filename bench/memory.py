"""What a process holds in memory."""

import ctypes
import gc
import os
from pathlib import Path

import psutil


def resident_bytes() -> int:
    """Of this process, after a collection and with what the allocator keeps free given back."""
    gc.collect()
    _trim()
    return int(psutil.Process().memory_info().rss)


def descriptors() -> int:
    """How many files and sockets this process has open."""
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else psutil.Process().num_fds()


def _trim() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; others keep what they keep
    if trim is not None:
        trim(0)
