"""Live readers: each sees every durable event once, in order, from any seq on, and none can slow a session down.

The hub keeps a short tail of recent records for sessions that somebody watches. A reader pulls: from the tail while it
keeps up, from the history when it has fallen behind; so a slow reader costs no memory.
"""

from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio
from attrs import define, field, frozen

from ..actors.ports import Journal, Record
from .recovery import History

if TYPE_CHECKING:
    from collections.abc import Iterator

TAIL_BYTES_MAX = 1024 * 1024
HISTORY_BYTES_A_READ = 1024 * 1024


@define
class Line:
    """One stored event as it is sent: `line` is its JSON, without a newline."""

    epoch: int
    seq: int
    type: str
    line: bytes


_TYPE = b'"type":"'


def lines_of(record: Record, after: int) -> "Iterator[Line]":
    """The events of a record above `after`. The type is the last field of every line (canonical JSON sorts them), so it
    is cut out instead of parsed."""
    if after >= record.last_seq:
        return
    for seq, line in enumerate(record.payload.splitlines(), record.first_seq):
        if seq > after:
            kind = line[line.rindex(_TYPE) + len(_TYPE) : -2].decode()
            yield Line(record.epoch, seq, kind, line)


@frozen(kw_only=True)
class LiveStatistics:
    """Who watches, and what is kept for them."""

    subscribers: int
    sessions_watched: int
    tail_bytes: int


@define(eq=False)
class _Watched:
    subscribers: set["Subscription"] = field(factory=set)
    tail: deque[Record] = field(factory=deque)
    tail_bytes: int = 0


class Subscription:
    """One reader's place."""

    def __init__(
        self,
        hub: "LiveHub",
        journal: Journal,
        history: History,
        session_id: str,
        watched: _Watched,
        after: int,
    ) -> None:
        self._hub = hub
        self._journal = journal
        self._history = history
        self._session_id = session_id
        self._watched = watched
        self._news = anyio.Event()
        self.after = after

    def notify(self) -> None:
        """There is something new. Never blocks."""
        self._news.set()

    async def lines(self) -> AsyncGenerator[Line]:
        """Events above `after`, until the hub closes."""
        while not self._hub.closed:
            # Looked at before the news are renewed: an event between the two would be missed otherwise.
            self._news = anyio.Event()
            head = self._journal.heads().get(self._session_id)
            if head is not None and self.after >= head:
                await self._news.wait()
                continue
            records = await self._next_records()
            if not records:  # handed over, and nothing follows
                await self._news.wait()
            for record in records:
                for line in lines_of(record, self.after):
                    self.after = line.seq
                    yield line

    async def _next_records(self) -> Sequence[Record]:
        tail = self._watched.tail
        # Its end is looked at too: the journal's heads move a moment before a commit is published. What is not in the tail
        # yet is durable, so it is read from the journal; waiting for it here would wait without giving way.
        if tail and tail[0].first_seq <= self.after + 1 and tail[-1].last_seq > self.after:
            return [record for record in tail if record.last_seq > self.after]
        return await self._history.read(self._session_id, self.after, bytes_max=HISTORY_BYTES_A_READ)


class LiveHub:
    """Who watches which session."""

    def __init__(self, journal: Journal, history: History) -> None:
        self.closed = False
        self._journal = journal
        self._history = history
        self._watched: dict[str, _Watched] = {}

    def close(self) -> None:
        """Every reader ends. Again: nothing happens."""
        self.closed = True
        for watched in self._watched.values():
            for subscription in watched.subscribers:
                subscription.notify()

    def publish(self, records: Sequence[Record]) -> None:
        """Committed records, in order; called for every commit, so it does nothing for sessions that nobody watches."""
        if not self._watched:
            return
        for record in records:
            watched = self._watched.get(record.session_id)
            if watched is None:
                continue
            watched.tail.append(record)
            watched.tail_bytes += len(record.payload)
            while watched.tail_bytes > TAIL_BYTES_MAX and len(watched.tail) > 1:
                watched.tail_bytes -= len(watched.tail.popleft().payload)
            for subscription in watched.subscribers:
                subscription.notify()

    @contextmanager
    def subscribe(self, session_id: str, after: int) -> "Iterator[Subscription]":
        """Events above `after`: those that are there, then those that come."""
        watched = self._watched.get(session_id)
        if watched is None:
            watched = self._watched[session_id] = _Watched()
        subscription = Subscription(self, self._journal, self._history, session_id, watched, after)
        watched.subscribers.add(subscription)
        try:
            yield subscription
        finally:
            watched.subscribers.discard(subscription)
            if not watched.subscribers:
                self._watched.pop(session_id, None)

    def statistics(self) -> LiveStatistics:
        """A frozen value."""
        return LiveStatistics(
            subscribers=sum(len(watched.subscribers) for watched in self._watched.values()),
            sessions_watched=len(self._watched),
            tail_bytes=sum(watched.tail_bytes for watched in self._watched.values()),
        )
