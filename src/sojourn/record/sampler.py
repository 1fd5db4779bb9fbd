"""What a process tree uses: CPU, memory, bytes read and written."""

import contextlib
import os

import psutil
from attrs import define, field, frozen


@frozen(kw_only=True)
class Sample:
    """A process tree at a moment; times and bytes are totals so far and never fall."""

    cpu_s: float
    rss_bytes: int
    read_bytes: int
    written_bytes: int
    processes: int


@define
class _Used:
    """What a process had used when it was last looked at, with what it had inherited from children it waited for."""

    cpu_s: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0

    def add(self, other: "_Used") -> None:
        self.cpu_s += other.cpu_s
        self.read_bytes += other.read_bytes
        self.written_bytes += other.written_bytes


@define
class _Seen:
    process: psutil.Process
    parent_pid: int = 0
    used: _Used = field(factory=_Used)


class Sampler:
    """Follows the tree below one process.

    The kernel adds what a child used to its parent when the parent waits for it (proc(5): cutime; I/O alike), so the total
    is that of the processes alive with what they inherited. Only what nobody inherits is kept here: the last reading of a
    process whose parent was gone. Memory that processes share counts in each.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._seen: dict[int, _Seen] = {}
        self._kept = _Used()
        self._highest = _Used()

    def sample(self) -> Sample:
        """Look at the tree. Never raises: processes end while one looks."""
        living: dict[int, _Seen] = {}
        rss_bytes = 0
        for process in self._tree():
            before = self._seen.get(process.pid)
            seen = before if before is not None and before.process == process else _Seen(process)
            try:
                with process.oneshot():
                    rss_bytes += process.memory_info().rss
                    seen.parent_pid = process.ppid()
                    seen.used = _read(process, seen.used)
            except psutil.Error:  # gone, a zombie, or of another user: what was read before stands
                pass
            living[process.pid] = seen
        for pid, seen in self._seen.items():
            parent_known = seen.parent_pid in living or seen.parent_pid in self._seen
            if pid not in living and pid != self._root.pid and not parent_known:
                self._kept.add(seen.used)
        self._seen = living
        total = _Used()
        for used in [self._kept, *(seen.used for seen in living.values())]:
            total.add(used)
        return self._never_falling(total, rss_bytes, len(living))

    def final(self, cpu_s: float) -> Sample:
        """The totals after the end. `cpu_s` is what the kernel says of the root and all that was waited for."""
        total = _Used(cpu_s=cpu_s)
        total.add(self._kept)
        return self._never_falling(total, 0, 0)

    def _never_falling(self, total: _Used, rss_bytes: int, processes: int) -> Sample:
        # A child that ends while we look is missed once; the next look has it with its parent.
        highest = self._highest
        highest.cpu_s = max(highest.cpu_s, total.cpu_s)
        highest.read_bytes = max(highest.read_bytes, total.read_bytes)
        highest.written_bytes = max(highest.written_bytes, total.written_bytes)
        return Sample(
            cpu_s=round(highest.cpu_s, 3),
            rss_bytes=rss_bytes,
            read_bytes=highest.read_bytes,
            written_bytes=highest.written_bytes,
            processes=processes,
        )

    def _tree(self) -> list[psutil.Process]:
        """Parents before children: read the other way round, a child that ends in between would count twice."""
        found: dict[int, psutil.Process] = {}
        # Ours, too: those that were seen and have lost their parents since, and the others of the command's session.
        known = [self._root, *(seen.process for seen in self._seen.values())]
        for process in [*known, *_of_session(self._root.pid)]:
            try:
                if process.pid not in found and process.is_running():
                    found[process.pid] = process
                    found.update((child.pid, child) for child in process.children(recursive=True))
            except psutil.Error:
                continue
        return list(found.values())


def _of_session(session: int) -> list[psutil.Process]:
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getsid(pid) == session:
                found.append(psutil.Process(pid))
    return found


def _read(process: psutil.Process, before: _Used) -> _Used:
    times = process.cpu_times()
    cpu_s = times.user + times.system + times.children_user + times.children_system
    try:
        io = process.io_counters()
    except psutil.Error:  # a zombie has times, and no counters
        return _Used(cpu_s, before.read_bytes, before.written_bytes)
    return _Used(cpu_s, io.read_bytes, io.write_bytes)
