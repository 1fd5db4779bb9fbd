"""Live readers: each sees every durable event once, in order, from any seq on, and none can slow a session down.

The hub keeps a short tail of recent records for sessions that somebody watches. A reader pulls: from the tail while it
keeps up, from the history when it has fallen behind; so a slow reader costs no memory. A thousand readers that are level
are a thousand tasks to wake for each event, three times what sending it costs; so a reader may give an outlet, and one task
of the hub's sends to all of those that take it at once.
"""

from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import anyio.lowlevel
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
# So many readers are sent to before others have their turn: half a millisecond.
PUSHES_A_SLICE = 128


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
    """A committed record, as its session's live readers share it.

    Attributes:
        frames: what one of them made of all its lines, for the others to send as well; None until then.
        chunk: the same as a chunk of HTTP's transfer coding.
    """

    record: Record
    last_seq: int
    frames: bytes | None = None
    chunk: bytes | None = None


class Outlet(Protocol):
    """Where a reader's news can go without waking its task."""

    def push(self, news: Sequence[News]) -> bool:
        """Take all of it now, or nothing. Never blocks, raises nothing."""
        ...


@define(eq=False)
class _Watched:
    pulling: set["Subscription"] = field(factory=set)
    with_outlet: set["Subscription"] = field(factory=set)
    tail: deque[News] = field(factory=deque)
    tail_bytes: int = 0


class Subscription:
    """One reader's place.

    Attributes:
        after: the seq of the last event that was taken, or sent by the outlet.
        above: the seq above which the last `take` begins.
    """

    def __init__(
        self,
        hub: "LiveHub",
        journal: Journal,
        history: History,
        session_id: str,
        watched: _Watched,
        after: int,
        outlet: Outlet | None,
    ) -> None:
        self._hub = hub
        self._journal = journal
        self._history = history
        self._session_id = session_id
        self._watched = watched
        self._woken = Gate()
        self._recalled = False
        self._outlet = outlet
        self._waits = False
        self.after = self.above = after

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
                self.above, self.after = self.after, news[-1].last_seq
                return news
            if self._recalled:
                self._recalled = False
                break
            # A wake since the last wait is kept, so an event that came while this looked around is not missed.
            self._waits = True
            try:
                await self._woken.wait()
            finally:
                self._waits = False
        return ()

    def push(self) -> bool:
        """Send what is there above `after` by the outlet, while the reader waits in `take`. Whether that was all: where not,
        the reader must see to it."""
        outlet = self._outlet
        if outlet is None or not self._waits:
            return False
        news = self._from_tail()
        if not news or news[0].record.first_seq <= self.after or not outlet.push(news):
            return False
        self.after = news[-1].last_seq
        return self._watched.tail[-1].last_seq <= self.after

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
            for news in await self.take():
                for line in lines_of(news.record, self.above):
                    yield line


class LiveHub:
    """Who watches which session."""

    def __init__(self, journal: Journal, history: History) -> None:
        self.closed = False
        self._journal = journal
        self._history = history
        self._watched: dict[str, _Watched] = {}
        self._fresh: dict[_Watched, None] = {}  # of which something is to be sent by outlets, in order
        self._woken = Gate()

    async def run(self, started: Callable[[], None]) -> None:
        """A child of a supervisor: sends what is published to the outlets that take it at once, and wakes the readers of
        those that don't. Runs until cancelled."""
        self._fresh = dict.fromkeys(self._watched.values())  # an earlier run may have ended in the middle
        started()
        while True:
            while self._fresh:
                watched = next(iter(self._fresh))
                del self._fresh[watched]
                for number, place in enumerate(tuple(watched.with_outlet), 1):
                    if not place.push():
                        place.notify()
                    if number % PUSHES_A_SLICE == 0:
                        await anyio.lowlevel.checkpoint()
            await self._woken.wait()

    def close(self) -> None:
        """Every reader ends. Again: nothing happens."""
        self.closed = True
        for watched in self._watched.values():
            for subscription in watched.pulling | watched.with_outlet:
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
            for subscription in watched.pulling:
                subscription.notify()
            if watched.with_outlet:
                self._fresh[watched] = None
                self._woken.wake()

    @contextmanager
    def subscribe(
        self, session_id: str, after: int, outlet: Outlet | None = None
    ) -> "Iterator[Subscription]":
        """Events above `after`: those that are there, then those that come; these by `outlet` where it takes them."""
        watched = self._watched.get(session_id)
        if watched is None:
            watched = self._watched[session_id] = _Watched()
        subscription = Subscription(self, self._journal, self._history, session_id, watched, after, outlet)
        subscribers = watched.pulling if outlet is None else watched.with_outlet
        subscribers.add(subscription)
        try:
            yield subscription
        finally:
            subscribers.discard(subscription)
            if not watched.pulling and not watched.with_outlet:
                self._watched.pop(session_id, None)

    def statistics(self) -> LiveStatistics:
        """A frozen value."""
        return LiveStatistics(
            subscribers=sum(
                len(watched.pulling) + len(watched.with_outlet) for watched in self._watched.values()
            ),
            sessions_watched=len(self._watched),
            tail_bytes=sum(watched.tail_bytes for watched in self._watched.values()),
        )
