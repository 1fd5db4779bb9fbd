"""The mirror writer: keeps the mirror level with what is durable, whatever becomes of its server.

Committed records gather by session while two batches are under way, so a batch grows with the load, and a session is in one
batch at a time. What the mirror does not follow (`gap`) is sent whole, from a copy of the session. While the server is away
nothing is sent; what gathers is bounded, and beyond the bound sessions are marked to be sent whole.

The mirror stands where the journal's head is for every session that is not held here as behind. That this is so is asked
from time to time by an update without events that follows the head: a server that lost or changed something answers `gap`.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Protocol, TypeVar

import anyio
import structlog
from anyio.abc import TaskGroup
from attrs import define, evolve, field, frozen

from .errors import (
    DeadlineExceeded,
    DurabilityUnavailable,
    NotOpen,
    OwnershipLost,
    SojournError,
    StaleEpoch,
    StorageFull,
    StoreError,
    UnusableMirror,
)
from .kernel.park import Gate, Parked
from .ports import Mirror, MirrorAnswer, MirrorHead, MirrorUpdate, Record

T = TypeVar("T")

log = structlog.get_logger("sojourn.mirror")

BATCH_SESSIONS_MAX = 256
BATCH_BYTES_MAX = 512 * 1024
BATCHES_MAX = 2
HELD_BYTES_MAX = 32 * 1024 * 1024
WHOLE_AT_ONCE = 16
CHORES_AT_ONCE = 16
CHORES_MAX = 10_000
CLAIM_EVERY_S = 2.0  # a claim lasts much longer
LEVEL_EVERY_S = 60.0
LEVEL_AT_ONCE = 1_024
AGAIN_S, AGAIN_S_MAX = 0.05, 1.0
UNUSABLE_AGAIN_S = 5.0
MIRRORED, DURABLE = "mirrored", "durable"


class MirrorSource(Protocol):
    """The sessions that are mirrored."""

    def heads(self) -> Mapping[str, int]:
        """Active sessions and their last durable seq. A live view."""
        ...

    async def whole(self, session_id: str) -> MirrorUpdate | None:
        """All of a session at one seq, durable; None where it is not active, or cannot be added to. Raises SojournError
        where it cannot be read."""
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
class _Session:
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
    askers: list[tuple[int, Parked, float]] = field(factory=list)


class MirrorWriter:
    """One task between the runtime and a mirror.

    Args:
        connect: opens the mirror; called again until it succeeds. Raises StoreError.
        owner: who claims the mirror, for people and for the next start on the same data folder.
        held_bytes_max: what waits for the mirror at most, beside what is being sent.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Mirror]],
        source: MirrorSource,
        *,
        owner: str,
        epoch: int,
        held_bytes_max: int = HELD_BYTES_MAX,
    ) -> None:
        self._connect = connect
        self._source = source
        self._owner = owner
        self._epoch = epoch
        self._held_bytes_max = held_bytes_max
        self._mirror: Mirror | None = None
        self._open = False
        self._trouble: StoreError | None = None
        self._behind: dict[str, _Session] = {}
        self._queue: deque[_Session] = deque()
        self._wholes: deque[_Session] = deque()
        self._foreign: set[str] = set()
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
        now = anyio.current_time()
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
                session = behind[session_id] = _Session(session_id, first_seq - 1, first_seq - 1, now)
            session.head = first_seq + record.count - 1
            if session.whole:
                continue
            if session.waits:
                session.events += payload.splitlines()
                session.documents.update(documents)
            else:
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

    def reached(self, session_id: str, seq: int, parked: Parked, deadline_s: float) -> Parked:
        """Awaiting `parked` returns once the mirror has acknowledged the session up to `seq`, which is durable.

        Raises:
            DurabilityUnavailable: the mirror is away, or goes away, or does not take this session.
            DeadlineExceeded: from `parked`, up to two seconds late.
        """
        if not self._open:
            raise self._unavailable()
        if session_id in self._foreign:
            raise DurabilityUnavailable(MIRRORED, DURABLE, "in the mirror something else stands in its place")
        session = self._behind.get(session_id)
        if session is None:
            head = self._source.heads().get(session_id)
            if head is None:
                raise DurabilityUnavailable(MIRRORED, DURABLE, "the session was handed over")
            session = self._probe(session_id, head)
            self._news.wake()
        session.askers.append((seq, parked, anyio.current_time() + deadline_s))
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

    # -- what waits ----------------------------------------------------------------------------------------------------

    def _hold(self, session_id: str, head: int, mirrored: int) -> _Session:
        session = self._behind[session_id] = _Session(session_id, head, mirrored, anyio.current_time())
        return session

    def _probe(self, session_id: str, head: int) -> _Session:
        """An update without events that follows the head: `dup` where the mirror stands there."""
        session = self._hold(session_id, head, head)
        session.waits, session.first_seq = True, head + 1
        self._enqueue(session)
        return session

    def _enqueue(self, session: _Session) -> None:
        if not session.queued and not session.busy:
            session.queued = True
            (self._wholes if session.whole and session.sent is None else self._queue).append(session)

    def _forgo(self, session: _Session) -> None:
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
        waiting, self._queue = self._queue, deque[_Session]()
        for session in waiting:
            session.queued = False
            self._enqueue(session)

    def _drop(self, session: _Session) -> None:
        """It is not behind any more, or not ours to send; who still waits for it hears so."""
        del self._behind[session.session_id]
        if session.queued:  # or it would be sent all the same
            session.queued = False
            for waiting in (self._queue, self._wholes):
                if session in waiting:
                    waiting.remove(session)
        if session.askers:
            why = (
                "in the mirror something else stands in its place"
                if session.session_id in self._foreign
                else "the session was handed over, or cannot be read"
            )
            self._tell(session, DurabilityUnavailable(MIRRORED, DURABLE, why))

    def _tell(self, session: _Session, error: SojournError) -> None:
        askers, session.askers = session.askers, []
        for _, parked, _ in askers:
            if not parked.done():
                parked.set_exception(error)

    # -- sending -------------------------------------------------------------------------------------------------------

    async def run(self, started: Callable[[], None]) -> None:
        """A child of a supervisor; runs until cancelled.

        Raises:
            StaleEpoch: the mirror was claimed by a later process on this data folder.
        """
        self._begin_anew()
        started()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._keep)
                while True:
                    await self._news.wait()
                    self._start_what_can(tasks)
        except BaseExceptionGroup as group:
            lost = group.subgroup(OwnershipLost)
            while isinstance(lost, BaseExceptionGroup):
                lost = lost.exceptions[0]  # type: ignore[assignment]
            if lost is not None:
                raise lost from None
            raise

    def _begin_anew(self) -> None:
        self._under_way = self._copying = self._chores = 0
        self._queue.clear()
        self._wholes.clear()
        for session in self._behind.values():
            session.busy = session.queued = False
            self._enqueue(session)

    def _start_what_can(self, tasks: TaskGroup) -> None:
        if not self._open:
            return
        while self._queue and self._under_way < BATCHES_MAX:
            self._under_way += 1
            tasks.start_soon(self._send, self._take_batch())
        while self._wholes and self._copying < WHOLE_AT_ONCE:
            self._copying += 1
            session = self._wholes.popleft()
            session.queued, session.busy = False, True
            tasks.start_soon(self._send_whole, session)
        while (self._removals or self._trims) and self._chores < CHORES_AT_ONCE:
            self._chores += 1
            if self._removals:
                tasks.start_soon(self._remove, *_pop(self._removals))
            else:
                tasks.start_soon(self._trim, *_pop(self._trims))

    def _take_batch(self) -> list[_Session]:
        batch: list[_Session] = []
        size = 0
        while self._queue and len(batch) < BATCH_SESSIONS_MAX and size < BATCH_BYTES_MAX:
            session = self._queue.popleft()
            session.queued, session.busy = False, True
            if session.sent is None:
                session.sent = MirrorUpdate(
                    session_id=session.session_id,
                    epoch=self._epoch,
                    first_seq=session.first_seq,
                    last_seq=session.first_seq + len(session.events) - 1,
                    events=tuple(session.events),
                    documents=session.documents,
                )
                session.sent_bytes = session.held_bytes
                session.events, session.documents, session.held_bytes = [], {}, 0
                session.waits = False
            size += session.sent_bytes
            batch.append(session)
        return batch

    async def _send(self, batch: list[_Session]) -> None:
        """A batch of unknown outcome is kept as it was, and sent again before what follows it."""
        assert self._mirror is not None
        try:
            answers = await self._mirror.apply(
                [session.sent for session in batch if session.sent is not None]
            )
        except StoreError as error:
            for session in batch:
                self._rest(session)
            self._goes_away(error)
        else:
            self._batches += 1
            self._updates += len(batch)
            for session, answer in zip(batch, answers, strict=True):
                update, session.sent = session.sent, None
                assert update is not None
                self._held_bytes -= session.sent_bytes
                session.sent_bytes = 0
                self._events += len(update.events)
                self._answered(session, answer, update.last_seq)
        finally:
            self._under_way -= 1
            self._news.wake()

    def _rest(self, session: _Session) -> None:
        """It is on its way no more."""
        session.busy = False
        if session.gone is not None:
            self.moved(session.session_id, session.gone)
        elif session.sent is not None or session.waits or session.whole:
            self._enqueue(session)
        else:
            self._drop(session)

    def _answered(self, session: _Session, answer: MirrorAnswer, seq: int) -> None:
        if answer is MirrorAnswer.FOREIGN:  # the adapter has said what stands there
            self._foreign.add(session.session_id)
            self._forgo(session)
            session.whole = False
        elif answer in (MirrorAnswer.GAP, MirrorAnswer.FENCED):
            session.fenced = answer is MirrorAnswer.FENCED
            self._forgo(session)
            session.whole = True
        else:
            session.mirrored = seq
            if session.askers:
                self._settle(session)
            if not session.waits and not session.whole and session.gone is None and not session.askers:
                session.busy = False
                del self._behind[session.session_id]
                return
            session.since = anyio.current_time()
        self._rest(session)

    def _settle(self, session: _Session) -> None:
        waiting = []
        for asker in session.askers:
            seq, parked, _ = asker
            if seq > session.mirrored:
                waiting.append(asker)
            elif not parked.done():
                parked.set_result(None)
        session.askers = waiting

    async def _send_whole(self, session: _Session) -> None:
        try:
            await self._replace(session)
        finally:
            self._copying -= 1
            self._news.wake()

    async def _replace(self, session: _Session) -> None:
        mirror, session_id, forced = self._mirror, session.session_id, session.fenced
        assert mirror is not None
        try:
            if forced:  # by a later process, or somebody changed the key: who holds the claim tells
                await self._claim(mirror)
                self._altered += 1
                log.warning(
                    "mirror.altered",
                    session=session_id,
                    remedy="something else wrote a higher epoch into this session's keys; they are replaced. Give the mirror "
                    "a database of its own",
                )
            else:
                head = await mirror.head(session_id)
                if head is not None and head.epoch < self._epoch and head.seq > session.head:
                    await self._source.found(mirror, session_id, head)
        except StoreError as error:
            self._try_again(session, error)
            return
        except SojournError as error:
            if isinstance(error, OwnershipLost):
                raise
            self._not_sent(session, error)
            return
        # From here on what is committed waits; what the copy holds of that already is cut off.
        session.whole = False
        self._forgo(session)
        try:
            update = await self._source.whole(session_id)
        except SojournError as error:
            self._not_sent(session, error)
            return
        if update is None:
            self._rest(session)
            return
        try:
            (answer,) = await mirror.apply([evolve(update, force=forced)])
        except StoreError as error:
            self._try_again(session, error)
            return
        if session.waits:
            known = update.last_seq + 1 - session.first_seq
            if known >= len(session.events):
                self._forgo(session)
            elif known > 0:
                del session.events[:known]
                session.first_seq += known
        self._rewritten += answer is MirrorAnswer.OK
        session.fenced = False
        session.head = max(session.head, update.last_seq)
        self._answered(session, answer, update.last_seq)

    def _try_again(self, session: _Session, error: StoreError) -> None:
        """Once the mirror is back."""
        self._forgo(session)
        session.whole = True
        self._rest(session)
        self._goes_away(error)

    def _not_sent(self, session: _Session, error: SojournError) -> None:
        """It cannot be read here; looked at again when all sessions are."""
        log.error(
            "mirror.session_not_sent",
            session=session.session_id,
            error=str(error),
            remedy="its error says what to do; the other sessions go on",
        )
        self._forgo(session)
        session.whole = False
        self._rest(session)

    async def _remove(self, session_id: str, tier: str) -> None:
        self._removed += 1
        await self._chore(
            lambda mirror: mirror.remove(session_id, self._epoch, tier),
            lambda: self._removals.setdefault(session_id, tier),
        )

    async def _trim(self, session_id: str, seq: int) -> None:
        await self._chore(
            lambda mirror: mirror.trim(session_id, self._epoch, seq),
            lambda: self._trims.setdefault(session_id, seq),
        )

    async def _chore(
        self, do: Callable[[Mirror], Awaitable[MirrorAnswer]], put_back: Callable[[], object]
    ) -> None:
        assert self._mirror is not None
        try:
            if await do(self._mirror) is MirrorAnswer.FENCED:
                await self._claim(self._mirror)
        except StoreError as error:
            put_back()
            self._goes_away(error)
        finally:
            self._chores -= 1
            self._news.wake()

    # -- the mirror's own state ----------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Connects, claims, and looks from time to time whether the mirror is what it is taken for."""
        again_s, level_at = AGAIN_S, 0.0
        while True:
            try:
                if self._mirror is None:
                    self._mirror = await self._connect()
                anew = await self._claim(self._mirror)
            except StoreError as error:
                self._goes_away(error)
                await anyio.sleep(UNUSABLE_AGAIN_S if isinstance(error, UnusableMirror) else again_s)
                again_s = min(2 * again_s, AGAIN_S_MAX)
                continue
            again_s = AGAIN_S
            self._comes_back()
            self._expire()
            now = anyio.current_time()
            if anew or now >= level_at:
                self._foreign.clear()
                await self._level()
                level_at = now + LEVEL_EVERY_S
            if anew:
                await self._look_for_strays(self._mirror)
            with anyio.move_on_after(CLAIM_EVERY_S):
                await self._keeper.wait()

    async def _claim(self, mirror: Mirror) -> bool:
        """Whether the mirror was claimed just now, so that anything may stand there.

        Raises:
            StaleEpoch: a later process on this data folder holds it.
            StoreError: it cannot be had; UnusableMirror: another data folder's runtime holds it.
        """
        claim = await mirror.claim(self._owner, self._epoch)
        if claim.answer is MirrorAnswer.FENCED:
            raise StaleEpoch(
                f"epoch {self._epoch} is fenced: a later process on this data folder writes the mirror, or this folder was lost or "
                "put back while the mirror could not be asked; where no other process runs, start this one again"
            )
        if claim.answer is MirrorAnswer.FOREIGN:
            raise UnusableMirror(
                f"the mirror's namespace is written by {claim.owner or 'something that is not Sojourn'}, or was until this "
                "process started; set mirror_namespace to another name, or, where that is gone for good, start this again"
            )
        return claim.answer is MirrorAnswer.GAP

    def _goes_away(self, error: StoreError) -> None:
        if self._trouble is None or type(self._trouble) is not type(error):
            log.warning(
                "mirror.away",
                error=str(error),
                remedy="its error says what to do; sessions go on, `mirrored` is refused, and the mirror is made level afterwards",
            )
        self._trouble = error
        self._open = False
        self._keeper.wake()
        refusal = self._unavailable()
        for session in self._behind.values():
            if session.askers:
                self._tell(session, refusal)

    def stop(self) -> None:
        """Nothing more is sent: whoever waits for the mirror hears that it is durable, and so does who asks from now on."""
        self._open = False
        self._trouble = NotOpen("the runtime has stopped")
        refusal = self._unavailable()
        for session in self._behind.values():
            self._tell(session, refusal)

    def _unavailable(self) -> DurabilityUnavailable:
        why = str(self._trouble) if self._trouble is not None else "the mirror is being connected"
        return DurabilityUnavailable(MIRRORED, DURABLE, why)

    def _comes_back(self) -> None:
        if self._open:
            return
        assert self._mirror is not None
        log.info("mirror.connected", server=self._mirror.description, sessions_behind=len(self._behind))
        self._trouble = None
        self._open = True
        self._news.wake()

    def _expire(self) -> None:
        now = anyio.current_time()
        for session in self._behind.values():
            for _, parked, until in session.askers:
                if now >= until and not parked.done():
                    parked.set_exception(DeadlineExceeded())

    async def _level(self) -> None:
        """Asks of every active session whether the mirror stands where it does."""
        for session_id, head in list(self._source.heads().items()):
            if not self._open:
                return
            while len(self._queue) >= LEVEL_AT_ONCE and self._open:
                await anyio.sleep(0.005)
            if session_id not in self._behind:
                head = self._source.heads().get(session_id, 0)
                if head:
                    self._probe(session_id, head)
                    self._news.wake()

    async def _look_for_strays(self, mirror: Mirror) -> None:
        """What stands in the mirror and is not active: handed over while it was away, or left by a disk that is lost."""
        try:
            strays = {
                session_id: head
                for session_id, head in (await mirror.heads()).items()
                if session_id not in self._source.heads()
            }
        except StoreError as error:
            self._goes_away(error)
            return
        for session_id, head in strays.items():
            try:
                await self._source.found(mirror, session_id, head)
            except SojournError as error:
                if isinstance(error, OwnershipLost):
                    raise
                log.error(
                    "mirror.stray_not_taken",
                    session=session_id,
                    error=str(error),
                    remedy="it is looked at again at the next start; what stands in the mirror stays",
                )

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
            behind_s=anyio.current_time() - min(session.since for session in late) if late else 0.0,
            batches=self._batches,
            updates=self._updates,
            events=self._events,
            rewritten=self._rewritten,
            altered=self._altered,
            removed=self._removed,
            foreign=len(self._foreign),
            last_error=str(self._trouble) if self._trouble is not None else None,
        )


def _pop(waiting: dict[str, T]) -> tuple[str, T]:
    session_id = next(iter(waiting))
    return session_id, waiting.pop(session_id)
