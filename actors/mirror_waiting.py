"""What waits for the mirror: what is durable and not mirrored yet, by session, and who waits to hear that it is.

The mirror stands where the journal's head is for every session that is not held here as behind.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Generator, Mapping, MutableMapping, Sequence
from typing import Any, Protocol

import anyio
from attrs import define, field, frozen

from .errors import (
    DurabilityUnavailable,
    NotOpen,
    StorageFull,
    StoreError,
    UnusableMirror,
)
from .kernel.park import Gate, Parked
from .ports import Mirror, MirrorAnswer, MirrorHead, MirrorUpdate, Record

HELD_BYTES_MAX = 32 * 1024 * 1024
CHORES_MAX = 10_000
MIRRORED, DURABLE = "mirrored", "durable"
FOREIGN = "in the mirror something else stands in its place"
_OK, _DUP = MirrorAnswer.OK, MirrorAnswer.DUP

Asker = tuple[
    int, Parked, float, Any
]  # up to which seq, where it waits, until when, and what it is told then


class MirrorSource(Protocol):
    """The sessions that are mirrored."""

    def heads(self) -> Mapping[str, int]:
        """Active sessions and their last durable seq. A live view."""
        ...

    async def whole(self, session_id: str, following: Callable[[], Sequence[str]]) -> MirrorUpdate | None:
        """All of a session at one seq, durable; None where it is not active, or cannot be added to.

        Args:
            following: says, when it is called, which sessions will be asked for next.

        Raises:
            SojournError: it cannot be read.
        """
        ...

    async def found(self, mirror: Mirror, session_id: str, head: MirrorHead) -> None:
        """It stands in the mirror, and either is not active, or is there at a higher seq than here (a lost disk). Raises
        SojournError where nothing could be done about it."""
        ...


@frozen(kw_only=True)
class MirrorStatistics:
    """What the writer did since it started, and how far the mirror is behind.

    `state`: level, behind, connecting, or why nothing is sent: away, full, unusable. `events_behind`, `sessions_behind` and
    `behind_s` (of the oldest) count what is durable and not mirrored, `bytes_behind` what is held for it. `rewritten` counts
    sessions that were sent whole, `altered` those among them whose keys somebody else had changed, `foreign` those that
    cannot be mirrored, since something else stands in their place.
    """

    state: str
    server: str
    is_local: bool
    sessions_behind: int
    events_behind: int
    bytes_behind: int
    behind_s: float
    batches: int
    updates: int
    events: int
    rewritten: int
    altered: int
    removed: int
    foreign: int
    last_error: str | None


@define(eq=False)
class Behind:
    """A session that is behind. `head` is durable, `mirrored` is there, as far as is known."""

    session_id: str
    head: int
    mirrored: int
    since: float
    first_seq: int = 0  # of what waits
    events: list[bytes] = field(factory=list)
    documents: MutableMapping[str, bytes | None] = field(factory=dict)
    held_bytes: int = 0  # of what waits
    waits: bool = False
    sent: MirrorUpdate | None = None
    sent_bytes: int = 0
    busy: bool = False  # in a batch, or on its way whole
    queued: bool = False
    whole: bool = False
    fenced: bool = False
    gone: str | None = None  # it was handed over meanwhile: the tier
    askers: list[Asker] = field(factory=list)


class Following:
    """Stands for the asker of `mirrored` in the kernel: `parked`, where it waits, has the answer once the mirror has followed.
    A second place to wait, for the mirror's part, would wake its task twice.

    `is_durable`: the answer is out of the kernel, and whatever `parked` raises, its command took effect.
    """

    __slots__ = ("_deadline_s", "_mirror", "_parked", "_session_id", "is_durable")

    def __init__(self, mirror: "MirrorWaiting", session_id: str, parked: Parked, deadline_s: float) -> None:
        self._mirror = mirror
        self._session_id = session_id
        self._parked = parked
        self._deadline_s = deadline_s
        self.is_durable = False

    def set_result(self, done: Any, /) -> None:
        """`done.seq` is durable. From here on `deadline_s` counts anew."""
        self.is_durable = True
        try:
            self._mirror.reached(self._session_id, done.seq, self._parked, self._deadline_s, done)
        except DurabilityUnavailable as refusal:
            # Its traceback holds frames that hold `_parked`, which would hold it: garbage that only the collector finds, and
            # with all that are refused at once it takes 100 ms for it.
            self._parked.set_exception(refusal.with_traceback(None))

    def set_exception(self, exception: BaseException, /) -> None:
        self._parked.set_exception(exception)

    def done(self) -> bool:
        return self._parked.done()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._parked.__await__()


class MirrorWaiting:
    """The half of the mirror writer that never waits itself. See `mirroring.MirrorWriter`."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Mirror]],
        source: MirrorSource,
        *,
        owner: str,
        epoch: int,
        held_bytes_max: int = HELD_BYTES_MAX,
        clock: Callable[[], float] = anyio.current_time,
    ) -> None:
        self._connect = connect
        self._source = source
        self._owner = owner
        self._epoch = epoch
        self._held_bytes_max = held_bytes_max
        self._clock = clock
        self._mirror: Mirror | None = None
        self._open = False
        self._trouble: StoreError | None = None
        self._behind: dict[str, Behind] = {}
        self._queue: deque[Behind] = deque()
        self._wholes: deque[Behind] = deque()
        self._foreign: set[str] = set()
        self._level_at = 0.0  # when all sessions are to be asked about next
        self._strays_due = False  # what stands in the mirror and is not active is to be looked at
        self._removals: dict[str, str] = {}
        self._trims: dict[str, int] = {}
        self._news = Gate()
        self._keeper = Gate()
        self._under_way = self._copying = self._chores = 0
        self._held_bytes = 0
        self._batches = self._updates = self._events = self._rewritten = self._altered = self._removed = 0

    # -- what the runtime says -----------------------------------------------------------------------------------------

    def offer(self, records: Sequence[Record]) -> None:
        """Durable records, in order; called for every commit."""
        now = self._clock()
        behind, foreign, queue = self._behind, self._foreign, self._queue
        held = self._held_bytes
        for record in records:
            documents, session_id = record.documents, record.session_id
            if documents is None or session_id in foreign:
                continue
            record.documents = None  # they are kept here alone
            first_seq, payload = record.first_seq, record.payload
            session = behind.get(session_id)
            if session is None:
                session = behind[session_id] = Behind(session_id, first_seq - 1, first_seq - 1, now)
            session.head = first_seq + record.count - 1
            if session.whole:
                continue
            if session.events:
                session.events += payload.splitlines()
                session.documents.update(documents)
            else:
                # Or a probe waits, that was made between the record's commit and this, and so says what follows the record.
                session.waits = True
                session.first_seq = first_seq
                session.events = payload.splitlines()
                session.documents = documents
            added = len(payload)
            for document in documents.values():
                if document is not None:
                    added += len(document)
            session.held_bytes += added
            held += added
            if not session.queued and not session.busy:
                session.queued = True
                queue.append(session)
        self._held_bytes = held
        if self._held_bytes > self._held_bytes_max:
            self._shed()
        self._news.wake()

    def snapshotted(self, session_id: str, seq: int) -> None:
        """The session's events up to this seq need not stand in the mirror any more."""
        session = self._behind.get(session_id)
        if session is not None and session.whole and not session.busy:
            return  # what it will be sent with begins above
        if len(self._trims) < CHORES_MAX:
            self._trims[session_id] = seq
            self._news.wake()

    def moved(self, session_id: str, tier: str) -> None:
        """The session was handed over: the catalog says so already."""
        self._trims.pop(session_id, None)
        session = self._behind.get(session_id)
        if session is not None and session.busy:
            session.gone = tier
            return
        if session is not None:
            self._forgo(session)
            self._drop(session)
        if len(self._removals) < CHORES_MAX:  # else the next start finds it
            self._removals[session_id] = tier
            self._news.wake()

    def reached(
        self, session_id: str, seq: int, parked: Parked, deadline_s: float, answer: Any = None
    ) -> Parked:
        """Awaiting `parked` gives `answer` once the mirror has acknowledged the session up to `seq`, which is durable.

        Raises:
            DurabilityUnavailable: the mirror is away, or goes away, or does not take this session; it tells `seq`.
            DeadlineExceeded: from `parked`, up to two seconds late.
        """
        if not self._open:
            raise _refusal(session_id, seq, self._why_away())
        if session_id in self._foreign:
            raise _refusal(session_id, seq, FOREIGN)
        session = self._behind.get(session_id)
        if session is None:
            head = self._source.heads().get(session_id)
            if head is None:
                raise _refusal(session_id, seq, "the session was handed over")
            session = self._probe(session_id, head)
            self._news.wake()
        session.askers.append((seq, parked, self._clock() + deadline_s, answer))
        return parked

    @property
    def mirror(self) -> Mirror | None:
        """The mirror, while it is there."""
        return self._mirror if self._open else None

    def mirrored_seq(self, session_id: str) -> int | None:
        """How far the mirror has acknowledged an active session; None while that is not known."""
        if not self._open or session_id in self._foreign:
            return None
        session = self._behind.get(session_id)
        if session is None:
            return self._source.heads().get(session_id)
        return None if session.whole else session.mirrored

    def stop(self) -> None:
        """Nothing more is sent: whoever waits for the mirror hears that it is durable, and so does who asks from now on."""
        self._open = False
        self._trouble = NotOpen("the runtime has stopped")
        why = self._why_away()
        for session in self._behind.values():
            self._refuse(session, why)

    # -- what waits ----------------------------------------------------------------------------------------------------

    def _hold(self, session_id: str, head: int, mirrored: int) -> Behind:
        session = self._behind[session_id] = Behind(session_id, head, mirrored, self._clock())
        return session

    def _probe(self, session_id: str, head: int) -> Behind:
        """An update without events that follows the head: `dup` where the mirror stands there."""
        session = self._hold(session_id, head, head)
        session.waits, session.first_seq = True, head + 1
        self._enqueue(session)
        return session

    def _enqueue(self, session: Behind) -> None:
        if not session.queued and not session.busy:
            session.queued = True
            (self._wholes if session.whole and session.sent is None else self._queue).append(session)

    def _forgo(self, session: Behind) -> None:
        """What waits of it goes: it is sent whole."""
        self._held_bytes -= session.held_bytes
        session.held_bytes = 0
        session.events, session.documents = [], {}
        session.waits = False

    def _shed(self) -> None:
        """More is held than may be: the sessions that are behind for longest are sent whole instead."""
        for session in self._behind.values():
            if self._held_bytes <= self._held_bytes_max // 2:
                break
            if session.waits and session.held_bytes:
                self._forgo(session)
                session.whole = True
        waiting, self._queue = self._queue, deque[Behind]()
        for session in waiting:
            session.queued = False
            self._enqueue(session)

    def _drop(self, session: Behind) -> None:
        """It is not behind any more, or not ours to send; who still waits for it hears so."""
        del self._behind[session.session_id]
        self._held_bytes -= session.sent_bytes  # of a batch whose outcome nobody will learn
        session.sent, session.sent_bytes = None, 0
        if session.queued:  # or it would be sent all the same
            session.queued = False
            for waiting in (self._queue, self._wholes):
                if session in waiting:
                    waiting.remove(session)
        if session.askers:
            is_foreign = session.session_id in self._foreign
            self._refuse(session, FOREIGN if is_foreign else "the session was handed over, or cannot be read")

    def _refuse(self, session: Behind, why: str) -> None:
        askers, session.askers = session.askers, []
        for seq, parked, _, _ in askers:
            if not parked.done():
                parked.set_exception(_refusal(session.session_id, seq, why))

    def _rest(self, session: Behind) -> None:
        """It is on its way no more."""
        session.busy = False
        if session.gone is not None:
            self.moved(session.session_id, session.gone)
        elif session.sent is not None or session.waits or session.whole:
            self._enqueue(session)
        else:
            self._drop(session)

    def _acknowledged(self, batch: Sequence[Behind], answers: Sequence[MirrorAnswer]) -> None:
        """The mirror's answers to what was sent of each."""
        for session, answer in zip(batch, answers, strict=True):
            update, session.sent = session.sent, None
            assert update is not None
            self._held_bytes -= session.sent_bytes
            session.sent_bytes = 0
            self._events += len(update.events)
            self._answered(session, answer, update.last_seq)

    def _answered(self, session: Behind, answer: MirrorAnswer, seq: int) -> None:
        if answer is _OK or answer is _DUP:
            session.mirrored = seq
            askers = session.askers
            if askers:
                session.askers = [asker for asker in askers if asker[0] > seq]
                for upto, parked, _, told in askers:
                    if upto <= seq and not parked.done():
                        parked.set_result(told)
            if not (session.waits or session.whole or session.askers) and session.gone is None:
                session.busy = False
                del self._behind[session.session_id]
                return
            session.since = self._clock()
        elif answer is MirrorAnswer.FOREIGN:  # the adapter has said what stands there
            self._foreign.add(session.session_id)
            self._forgo(session)
            session.whole = False
        else:
            session.fenced = answer is MirrorAnswer.FENCED
            self._forgo(session)
            session.whole = True
        self._rest(session)

    def _why_away(self) -> str:
        return str(self._trouble) if self._trouble is not None else "the mirror is being connected"

    def statistics(self) -> MirrorStatistics:
        """A frozen value."""
        behind = self._behind.values()
        if self._open:
            state = "behind" if any(s.head > s.mirrored or s.whole for s in behind) else "level"
        elif self._trouble is None:
            state = "connecting"
        elif isinstance(self._trouble, UnusableMirror):
            state = "unusable"
        else:
            state = "full" if isinstance(self._trouble, StorageFull) else "away"
        late = [session for session in behind if session.head > session.mirrored or session.whole]
        return MirrorStatistics(
            state=state,
            server=self._mirror.description if self._mirror is not None else "",
            is_local=self._mirror is not None and self._mirror.is_local,
            sessions_behind=len(late),
            events_behind=sum(session.head - session.mirrored for session in late),
            bytes_behind=self._held_bytes,
            behind_s=self._clock() - min(session.since for session in late) if late else 0.0,
            batches=self._batches,
            updates=self._updates,
            events=self._events,
            rewritten=self._rewritten,
            altered=self._altered,
            removed=self._removed,
            foreign=len(self._foreign),
            last_error=str(self._trouble) if self._trouble is not None else None,
        )


def _refusal(session_id: str, seq: int, why: str) -> DurabilityUnavailable:
    """For one asker: what was asked is durable."""
    return DurabilityUnavailable(MIRRORED, DURABLE, why, session_id=session_id, seq=seq)
