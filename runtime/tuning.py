"""Settings of the whole process that a runtime runs best with. `serve` and the benchmarks use them; a host that embeds a
runtime decides for itself, because they are its process's too."""

import contextlib
import ctypes
import gc
import sys
import time
from typing import Any

# A thread that wants the interpreter waits this long for one that computes. The journal's thread wants it twice a commit:
# at Python's 5 ms a commit beside a busy event loop took up to 3 s, at this 2-4 ms.
SWITCH_INTERVAL_S = 0.0001
# Young objects that are looked at together: of 20,000 at once a look took 10 to 25 ms.
YOUNG_OBJECTS = 5_000
# What has outlived that is looked at so often, and not after so many new objects: among 10,000 sessions that is 200 ms, at
# 17,000 events a second it came every 40 s, and turns leave no cycles behind (a connection leaves 31 objects).
OLD_GARBAGE_EVERY_S = 300.0
_NEVER, _NEXT_TIME = 1_000_000_000, 0
# glibc gives blocks above this back to the system as they are freed, and raises it with each up to 32 MiB: then what moving
# 8 MiB segments took stays with each thread that did so, 15 MB over a day.
_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES = -3, 1024 * 1024


def begin_loading() -> None:
    """Call before a runtime is opened, and `tune_process` afterwards: until then nothing is collected. What is loaded stays,
    and looking through all of it again and again took a seventh of a start with 10,000 sessions."""
    gc.disable()


def tune_process() -> None:
    """Call once everything is loaded: fewer garbage collections, none of them over what is there already (their pauses
    are most of p99), most of them short, quick hand-overs between threads, and large blocks of memory go back to the
    system."""
    # Without a collection before it: of 134,000 objects it found 6,000 in 0.1 s, while somebody waits for the first answer.
    gc.freeze()
    with contextlib.suppress(AttributeError):  # a C library that has no such setting
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    if _old_garbage not in gc.callbacks:
        gc.callbacks.append(_old_garbage)
    _old_garbage.postpone()
    gc.enable()
    sys.setswitchinterval(SWITCH_INTERVAL_S)


class _OldGarbage:
    """Of `gc.callbacks`: lets the older objects have their turn by the clock. The collector itself goes by counts, and may not
    be called from here; so the count it waits for is changed."""

    def __init__(self) -> None:
        self._due_at = 0.0

    def postpone(self) -> None:
        self._due_at = time.monotonic() + OLD_GARBAGE_EVERY_S
        gc.set_threshold(YOUNG_OBJECTS, _NEVER, 20)

    def __call__(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "stop":
            if info["generation"] > 0:
                self.postpone()
            elif time.monotonic() >= self._due_at:
                gc.set_threshold(YOUNG_OBJECTS, _NEXT_TIME, 20)


_old_garbage = _OldGarbage()
