"""Settings of the whole process that a runtime runs best with. `serve` and the benchmarks use them; a host that embeds a
runtime decides for itself, because they are its process's too."""

import contextlib
import ctypes
import gc
import sys
import threading
import time

# A thread that wants the interpreter waits this long for one that computes. The journal's thread wants it twice a commit:
# at Python's 5 ms a commit beside a busy event loop took up to 3 s, at this 2-4 ms.
SWITCH_INTERVAL_S = 0.0001
# Young objects that are looked at together: of 20,000 at once a look took 10 to 25 ms.
YOUNG_OBJECTS = 5_000
# What has outlived that is looked at so seldom, and if there were so many looks at young ones since: among 10,000 sessions it takes
# 200 ms, at 17,000 events a second it came every 40 s, and turns leave no cycles behind (a connection leaves 31 objects).
OLD_GARBAGE_EVERY_S, OLD_GARBAGE_AFTER = 300.0, 200
_NEVER = 1_000_000_000
_THREAD = "sojourn old garbage"
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
    gc.set_threshold(YOUNG_OBJECTS, _NEVER, 20)
    if not any(thread.name == _THREAD for thread in threading.enumerate()):
        threading.Thread(target=_look_at_old_garbage, name=_THREAD, daemon=True).start()
    gc.enable()
    sys.setswitchinterval(SWITCH_INTERVAL_S)


def _look_at_old_garbage() -> None:
    """The thread that lets the older objects have their turn by the clock. It changes the count that the collector waits for,
    and does not collect: what a collection ends would end in the wrong thread. Nor is it one of `gc.callbacks`: a Ctrl-C that
    comes in one of those is lost."""
    while True:
        time.sleep(OLD_GARBAGE_EVERY_S)
        young_looks = gc.get_count()[1]
        gc.set_threshold(YOUNG_OBJECTS, young_looks if young_looks >= OLD_GARBAGE_AFTER else _NEVER, 20)
