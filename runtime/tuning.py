"""Settings of the whole process that a runtime runs best with. `serve` and the benchmarks use them; a host that embeds a
runtime decides for itself, because they are its process's too."""

import contextlib
import ctypes
import gc
import sys

# A thread that wants the interpreter waits this long for one that computes. The journal's thread wants it twice a commit:
# at Python's 5 ms a commit beside a busy event loop took up to 3 s, at this 2-4 ms.
SWITCH_INTERVAL_S = 0.0001
# glibc gives blocks above this back to the system as they are freed, and raises it with each up to 32 MiB: then what moving
# 8 MiB segments took stays with each thread that did so, 15 MB over a day.
_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES = -3, 1024 * 1024


def begin_loading() -> None:
    """Call before a runtime is opened, and `tune_process` afterwards: until then nothing is collected. What is loaded stays,
    and looking through all of it again and again took a seventh of a start with 10,000 sessions."""
    gc.disable()


def tune_process() -> None:
    """Call once everything is loaded: fewer garbage collections, none of them over what is there already (their pauses
    are most of p99), and short ones (20,000 young objects at once took 10 ms), quick hand-overs between threads, and large
    blocks of memory go back to the system."""
    # Without a collection before it: of 134,000 objects it found 6,000 in 0.1 s, while somebody waits for the first answer.
    gc.freeze()
    with contextlib.suppress(AttributeError):  # a C library that has no such setting
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    gc.set_threshold(5_000, 200, 20)
    gc.enable()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
