"""Live readers: each sees every durable event once, in order, from any seq on, and none can slow a session down.

The hub keeps a short tail of recent records for sessions that somebody watches. A reader pulls: from the tail while it
keeps up, from the history when it has fallen behind; so a slow reader costs no memory.
"""

from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from ..actors.kernel.park import Gate
from ..actors.ports import Journal, Record
from .recovery import History

if TYPE_CHECKING:
    from collections.abc import Iterator

TAIL_BYTES_MAX = 1024 * 1024
HISTORY_BYTES_A_READ = 1024 * 1024
# Held while a slow reader takes it, by each of them.
CATCH_UP_BYTES_A_READ = 256 * 1024


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
class News:
    """A committed record, as its session's live readers share it. `frames` is what one of them made of all its lines, for
    the others to send as well; None until then."""

    record: Record
    last_seq: int
    frames: bytes | None = None


@define(eq=False)
class _Watched:
    subscribers: set["Subscription"] = field(factory=set)
    tail: deque[News] = field(factory=deque)
    tail_bytes: int = 0


class Subscription:
    """One reader's place.

    Attributes:
        after: the seq of the last event that was taken.
    """

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
        self._woken = Gate()
        self._recalled = False
        self.after = after

    @property
    def closed(self) -> bool:
        """The hub has closed: nothing more will come."""
        return self._hub.closed

    def notify(self) -> None:
        """There is something new. Never blocks."""
        self._woken.wake()

    def recall(self) -> None:
        """`take` returns, with nothing if there is nothing. Never blocks."""
        self._recalled = True
        self._woken.wake()

    async def take(self) -> Sequence[News]:
        """What is there above `after`: at least one record, of which a part may lie below, and no more after the one with which
        they reach `CATCH_UP_BYTES_A_READ`. Empty once the hub has closed, and after `recall`. For one task only."""
        while not self._hub.closed:
            news = self._from_tail()
            if not news:
                head = self._journal.heads().get(self._session_id)
                if head is None or self.after < head:
                    news = await self._from_history()  # nothing: it was handed over, and nothing follows
            if news:
                self.after = news[-1].last_seq
                return news
            if self._recalled:
                self._recalled = False
                break
            # A wake since the last wait is kept, so an event that came while this looked around is not missed.
            await self._woken.wait()
        return ()

    def _from_tail(self) -> Sequence[News]:
        """Nothing where the tail does not go on from here. Its end is looked at first: the journal's heads move a moment
        before a commit is published, and what is not in the tail yet is durable, so it is read from the journal; waiting for
        it here would wait without giving way."""
        tail, after = self._watched.tail, self.after
        if not tail or (newest := tail[-1]).last_seq <= after:
            return ()
        if newest.record.first_seq <= after + 1:  # most readers have seen all but this one
            return (newest,)
        if tail[0].record.first_seq > after + 1:
            return ()
        found: list[News] = []
        size_bytes = 0
        for news in tail:
            if news.last_seq > after:
                found.append(news)
                size_bytes += len(news.record.payload)
                if size_bytes >= CATCH_UP_BYTES_A_READ:
                    break
        return found

    async def _from_history(self) -> Sequence[News]:
        records = await self._history.read(self._session_id, self.after, bytes_max=CATCH_UP_BYTES_A_READ)
        return [News(record, record.last_seq) for record in records]

    async def lines(self) -> AsyncGenerator[Line]:
        """Events above `after`, until the hub closes."""
        while not self._hub.closed:
            after = self.after
            for news in await self.take():
                for line in lines_of(news.record, after):
                    yield line


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
            watched.tail.append(News(record, record.last_seq))
            watched.tail_bytes += len(record.payload)
            while watched.tail_bytes > TAIL_BYTES_MAX and len(watched.tail) > 1:
                watched.tail_bytes -= len(watched.tail.popleft().record.payload)
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
