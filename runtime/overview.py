"""One look at a whole runtime for a person who watches it: its parts, its counts, and the sessions that matter most."""

import heapq
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from anyio.lowlevel import checkpoint
from attrs import frozen

from ..actors.kernel.actor import Cell, CellState
from ..actors.kernel.scheduler import Kernel
from ..actors.ports import Journal

if TYPE_CHECKING:
    from .runtime import RuntimeStatistics

SLICE_SESSIONS = 1_000
# Who needs a person first, who waits, who works; the rest by when it was active.
_TROUBLE = {CellState.QUARANTINED: 3, CellState.BACKOFF: 2, CellState.STARTING: 1}


@frozen(kw_only=True)
class SessionOverview:
    """One session in memory, or on its way there.

    Attributes:
        state: its CellState.
        seq: the last durable one; two looks give its events a second.
        mirrored_seq: how far the mirror has it; None where there is no mirror, or that is not known now.
        mailbox, mailbox_bytes: what waits.
        restarts: how often it crashed and was started anew since it entered memory.
        idle_s: since its last turn.
    """

    session_id: str
    state: str
    seq: int
    mirrored_seq: int | None
    mailbox: int
    mailbox_bytes: int
    restarts: int
    idle_s: float


@frozen(kw_only=True)
class Overview:
    """`sessions` are those in trouble first, then those with the most that waits, then those active last; `sessions_total`
    counts all in memory or on their way there. `dead_letters` are counts by reason."""

    at: datetime
    sessions_total: int
    sessions: tuple[SessionOverview, ...]
    dead_letters: dict[str, int]
    statistics: "RuntimeStatistics"


async def sessions_of(
    kernel: Kernel,
    journal: Journal,
    mirrored_seq: Callable[[str], int | None],
    limit: int,
) -> tuple[int, tuple[SessionOverview, ...]]:
    """How many there are, and the first `limit` of them. Others have their turn meanwhile."""
    cells = [cell for cell in list(kernel.cells.values()) if kernel.is_virtual(cell)]
    first: list[Cell] = []
    for start in range(0, len(cells), SLICE_SESSIONS):
        first = heapq.nlargest(limit, first + cells[start : start + SLICE_SESSIONS], key=_weight)
        await checkpoint()
    heads, now = journal.heads(), kernel.clock()
    return len(cells), tuple(
        SessionOverview(
            session_id=cell.actor_id,
            state=cell.state.value,
            seq=heads.get(cell.actor_id, 0),
            mirrored_seq=mirrored_seq(cell.actor_id),
            mailbox=cell.depth + len(cell.turns),
            mailbox_bytes=cell.payload_bytes,
            restarts=cell.restarts,
            idle_s=max(0.0, now - cell.active_at) if cell.active_at else 0.0,
        )
        for cell in first
    )


def _weight(cell: Cell) -> tuple[int, int, float]:
    return (_TROUBLE.get(cell.state, 0), cell.depth + len(cell.turns), cell.active_at)
