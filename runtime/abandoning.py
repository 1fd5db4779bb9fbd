"""Ends sessions that nobody was heard of for too long.

Signs of life are not stored. So the last one of a session is the latest of three: what it was told in this process, its last
event, and the start of this process: a reporter that found no server for a day is not taken to be gone. A timer that fires is
an event and no sign of life, so the last event of a session with timers says nothing: what it was told in this process does.
A wall clock that is set counts as a start: what it said of last events before is no measure any more.
"""

import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import anyio
import anyio.lowlevel
import structlog

from ..actors.errors import SojournError, StoreError
from ..actors.ports import Catalog, Clock, Journal
from ..actors.session.actor import GiveUp
from ..actors.session.model import ENDED
from .shelves import ACTIVE

log = structlog.get_logger("sojourn.abandoning")

LOOK_EVERY_S = 300.0
_ALL = 1 << 62
_IN_A_ROW = 500  # others go on in between
_PAGE_ROWS = 500
_FAR = datetime.max.replace(tzinfo=UTC)
_ENDED = frozenset(status.value for status in ENDED)


def look_every_s(after_s: float) -> float:
    """Often enough that no session is ended a tenth later than it should be."""
    return min(LOOK_EVERY_S, max(1.0, after_s / 10))


def reason_for(after_s: float) -> str:
    """What the event says."""
    return f"no sign of life for {f'{after_s / 3600:.3g} h' if after_s >= 3600 else f'{after_s:.3g} s'}"


class Abandoner:
    """Looks, every few minutes and with jitter, at the sessions whose last event is old enough: the catalog
    names them, and none is brought into memory for it.

    Args:
        silent_s: seconds since the last sign of life of a session in this process, or since its start; a session whose last
            sign was its last event may have been silent for less.
        give_up: ends a session as the message says, durable on return; False where it shows life after all.
        is_set_aside: whether it takes nothing until a person accepts a loss.
        hindered: whether changes are refused just now.
        after_s: how long a session may be silent.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        catalog: Catalog,
        clock: Clock,
        silent_s: Callable[[str], float],
        give_up: Callable[[str, GiveUp], Awaitable[bool]],
        is_set_aside: Callable[[str], bool],
        hindered: Callable[[], bool],
        after_s: float,
    ) -> None:
        self._journal = journal
        self._catalog = catalog
        self._clock = clock
        self._silent_s = silent_s
        self._give_up = give_up
        self._is_set_aside = is_set_aside
        self._hindered = hindered
        self._after_s = after_s
        self._started_at = clock.monotonic()
        self._failing: dict[str, str] = {}
        self.abandoned = 0

    async def run(self, started: Callable[[], None]) -> None:
        """A child of a supervisor; runs until cancelled."""
        started()
        while True:
            # As long as this process is too young, none can have been silent in it for so long.
            young_s = self._after_s - (self._clock.monotonic() - self._started_at)
            await anyio.sleep(max(young_s, look_every_s(self._after_s) * random.uniform(0.8, 1.2)))
            await self.look()

    async def look(self) -> None:
        """End every session that is due, one after the other. What fails is said once, and tried again at the next look."""
        failing: dict[str, str] = {}
        try:
            for session_id in await self._silent():
                if self._hindered():
                    break
                if await self._is_due(session_id):
                    await self._end(session_id, failing)
        except StoreError as error:
            # Whatever it is about, the next session would meet it too.
            self._say("", error, failing)
        self._failing = failing

    async def _silent(self) -> list[str]:
        if self._clock.monotonic() - self._started_at < self._after_s:
            return []
        before = self._clock.now() - timedelta(seconds=self._after_s)
        found = await self._catalog.in_tier(ACTIVE, updated_before=before, limit=_ALL)
        silent = []
        for number, session_id in enumerate(dict.fromkeys(found + await self._with_timers()), 1):
            if self._silent_s(session_id) >= self._after_s and not self._is_set_aside(session_id):
                silent.append(session_id)
            if number % _IN_A_ROW == 0:
                await anyio.lowlevel.checkpoint()
        return silent

    async def _with_timers(self) -> list[str]:
        """Sessions whose last event may be a timer's."""
        found: list[str] = []
        after = None
        while True:
            page = await self._catalog.due(before=_FAR, after=after, limit=_PAGE_ROWS)
            found += [session_id for _, session_id in page]
            if len(page) < _PAGE_ROWS:
                return found
            after = page[-1]

    async def _is_due(self, session_id: str) -> bool:
        row = await self._catalog.get(session_id)
        if row is None or row.status in _ENDED:
            return False
        head = self._journal.heads().get(session_id, 0)
        # A row that lags says nothing, unless a timer that fires may be all that came since; what else there was is a sign of
        # life in this process. One that is ahead is that of a session that has lost its end.
        level = row.seq == head or (row.next_due_at is not None and row.seq < head)
        return level and self._silent_s(session_id) >= self._after_s

    async def _end(self, session_id: str, failing: dict[str, str]) -> None:
        before = self._clock.now() - timedelta(seconds=self._after_s)
        message = GiveUp(self._journal.heads()[session_id], reason_for(self._after_s), before)
        try:
            if await self._give_up(session_id, message):
                self.abandoned += 1
                log.info("session.abandoned", session=session_id, reason=message.reason)
        except StoreError:
            raise
        except SojournError as error:
            self._say(session_id, error, failing)

    def _say(self, session_id: str, error: SojournError, failing: dict[str, str]) -> None:
        failing[session_id] = error.code
        if self._failing.get(session_id) != error.code:
            log.error(
                "session.not_abandoned",
                session=session_id or None,
                error=str(error),
                remedy="it is tried again in some minutes; the session stays as it is meanwhile",
            )
