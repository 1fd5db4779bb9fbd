"""Who is in memory: idle sessions leave after a while, and where there is no room, the one that is idle longest first.

What is bounded is what can be told at once and falls when they leave: how many sessions there are, and about what their
documents take (`SessionState.size_bytes`). The process's own size does neither: the interpreter seldom gives memory back,
so it would tell of a load that has long gone, and it counts a host's own besides.
"""

import heapq
from collections.abc import Callable, Iterator

import anyio
from anyio.lowlevel import checkpoint
from attrs import frozen

from ..actors.kernel.actor import Cell
from ..actors.kernel.park import Gate
from ..actors.kernel.scheduler import Kernel
from ..actors.session.model import SessionState
from .resting import Rest

# The states are measured so often: between two measurements they grow by what comes in meanwhile.
MEASURE_EVERY_S = 10.0
# Of a look: some 500 sessions, or 20 that leave while their rows of the catalog are still to be written.
SLICE_S = 0.00025
SLICE_SESSIONS = 1_000
SESSIONS_A_CLOCK = 20
# Where a bound is passed, a sixteenth is freed at once: a look at all sessions costs more than one session's leaving.
FREED_SHARE = 1 / 16
# Between two looks: where nothing is idle, looking again and again frees nothing.
REST_MIN_S = 0.05


@frozen(kw_only=True)
class MemoryStatistics:
    """What is in memory, of how much, and what has left since the start: `passivated` because it was idle for long,
    `pressed_out` because there was no room. `sessions` and `states_bytes` are as of the last look (at most 10 s old) and the
    starts since."""

    sessions: int
    sessions_max: int
    states_bytes: int
    states_bytes_max: int
    passivated: int
    pressed_out: int


class Residents:
    """A child of the runtime's tree.

    Args:
        left: called with each session that has left, and its state.
        after_s: idle for so long, a session leaves.
        sessions_max, states_bytes_max: beyond either, idle ones leave at once.
    """

    def __init__(
        self,
        kernel: Kernel,
        left: Callable[[str, SessionState | None], None],
        *,
        after_s: float,
        sessions_max: int,
        states_bytes_max: int,
    ) -> None:
        self._kernel = kernel
        self._left = left
        self._after_s = after_s
        self._sessions_max = sessions_max
        self._states_bytes_max = states_bytes_max
        self._pressed = Gate()
        self._sessions = self._states_bytes = 0
        self._passivated = self._pressed_out = 0

    def started(self, state_bytes: int) -> None:
        """A session whose state takes so much enters memory."""
        self._sessions += 1
        self._states_bytes += state_bytes
        if self._is_pressed(len(self._kernel.cells)):
            self._pressed.wake()

    def statistics(self) -> MemoryStatistics:
        """A frozen value."""
        return MemoryStatistics(
            sessions=self._sessions,
            sessions_max=self._sessions_max,
            states_bytes=self._states_bytes,
            states_bytes_max=self._states_bytes_max,
            passivated=self._passivated,
            pressed_out=self._pressed_out,
        )

    async def run(self, started: Callable[[], None]) -> None:
        """A child of a supervisor; runs until cancelled."""
        started()
        while True:
            with anyio.move_on_after(min(self._after_s / 5, MEASURE_EVERY_S)):
                await self._pressed.wait()
            await self._look(self._kernel.clock())
            await anyio.sleep(REST_MIN_S)

    def _is_pressed(self, sessions: int) -> bool:
        return sessions > self._sessions_max or self._states_bytes > self._states_bytes_max

    async def _look(self, now: float) -> None:
        sessions = states_bytes = 0
        sessions_before, bytes_before = self._sessions, self._states_bytes
        # Each is taken out as it is looked at: what holds all until the end frees all who have left in one go.
        cells = list(self._kernel.cells.values())
        rest = Rest()
        while cells:
            for _ in self._slice(cells):
                cell = cells.pop()
                if not _is_session(cell):
                    continue
                if cell.active_at < now - self._after_s and self._let_go(cell, cell.active_at) is not None:
                    self._passivated += 1
                    continue
                sessions += 1
                states_bytes += _state_bytes(cell)
            del cell
            await rest()
        # Those that have started meanwhile were counted as they did.
        self._sessions += sessions - sessions_before
        self._states_bytes += states_bytes - bytes_before
        if self._is_pressed(self._sessions):
            await self._make_room(await self._oldest_first())

    async def _oldest_first(self) -> Iterator[tuple[float, str]]:
        """When each session was active, and its id; sorted in parts, because all at once would hold the others up."""
        cells = list(self._kernel.cells.values())
        rest = Rest()
        parts: list[list[tuple[float, str]]] = []
        while cells:
            part = []
            for _ in self._slice(cells):
                cell = cells.pop()
                if _is_session(cell):
                    part.append((cell.active_at, cell.actor_id))
            part.sort()
            parts.append(part)
            await rest()
        return heapq.merge(*parts)

    async def _make_room(self, oldest: Iterator[tuple[float, str]]) -> None:
        sessions_aim = self._sessions_max - int(self._sessions_max * FREED_SHARE)
        bytes_aim = self._states_bytes_max - int(self._states_bytes_max * FREED_SHARE)
        for looked, (active_at, actor_id) in enumerate(oldest, 1):
            if self._sessions <= sessions_aim and self._states_bytes <= bytes_aim:
                return
            cell = self._kernel.cells.get(actor_id)
            freed_bytes = self._let_go(cell, active_at) if cell is not None else None
            if freed_bytes is not None:
                self._sessions -= 1
                self._states_bytes -= freed_bytes
                self._pressed_out += 1
            if looked % SESSIONS_A_CLOCK == 0:
                await checkpoint()  # and no rest: others come in meanwhile

    def _slice(self, cells: list[Cell]) -> Iterator[None]:
        """Once for each of the next cells, of which the caller takes one out each time, until others must have their turn."""
        clock = self._kernel.clock
        until = clock() + SLICE_S
        for number in range(min(len(cells), SLICE_SESSIONS)):
            if number and number % SESSIONS_A_CLOCK == 0 and clock() >= until:
                return
            yield

    def _let_go(self, cell: Cell, active_at: float) -> int | None:
        """What its state took; None where it stays: it is not idle, or was active since `active_at`."""
        state_bytes, state = _state_bytes(cell), _state(cell)
        if cell.active_at > active_at or not self._kernel.passivate(cell.actor_id):
            return None
        self._left(cell.actor_id, state)
        return state_bytes


def _is_session(cell: Cell) -> bool:
    return _state(cell) is not None


def _state_bytes(cell: Cell) -> int:
    state = _state(cell)
    return state.size_bytes if state is not None else 0


def _state(cell: Cell) -> SessionState | None:
    state = getattr(cell.actor, "state", None)  # of whatever kind of actor a session has
    return state if isinstance(state, SessionState) else None
