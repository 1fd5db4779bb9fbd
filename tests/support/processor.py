"""Time in which a thread could not go on for want of a processor: others use this machine, and its host, too."""

import os
import threading
from collections.abc import Sequence

from attrs import frozen

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@frozen
class Mark:
    """`waited_s`: how long the thread was ready to run and had to wait; `stolen_s`: what the host of a virtual machine took
    from each of its processors, in steps of 10 ms. Source: proc(5), schedstat and stat."""

    waited_s: float
    stolen_s: Sequence[float]


class Processor:
    """Of the thread that made this."""

    def __init__(self) -> None:
        self._thread = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)
        self._machine = os.open("/proc/stat", os.O_RDONLY)

    def mark(self) -> Mark:
        """Where both stand."""
        waited_s = int(os.pread(self._thread, 64, 0).split()[1]) / 1e9
        lines = os.pread(self._machine, 1 << 16, 0).splitlines()[1:]
        return Mark(
            waited_s, [int(line.split()[8]) / TICKS_A_SECOND for line in lines if line.startswith(b"cpu")]
        )

    def close(self) -> None:
        os.close(self._thread)
        os.close(self._machine)


def lost_s(before: Mark, after: Mark) -> float:
    """What was lost in between at least: the greater of both, and of the processors the one from which most was taken, since
    their times may overlap."""
    stolen = [now - then for then, now in zip(before.stolen_s, after.stolen_s, strict=True)]
    return max(after.waited_s - before.waited_s, *stolen)
