"""The mirror writer: keeps the mirror level with what is durable, whatever becomes of its server.

Committed records gather by session while two batches are under way, so a batch grows with the load, and a session is in one
batch at a time. What the mirror does not follow (`gap`) is sent whole, from a copy of the session. While the server is away
nothing is sent; what gathers is bounded, and beyond the bound sessions are marked to be sent whole.

The mirror stands where the journal's head is for every session that is not held here as behind. That this is so is asked
from time to time by an update without events that follows the head: a server that lost or changed something answers `gap`.
"""

from collections.abc import Awaitable, Callable
from itertools import islice
from typing import TypeVar

import anyio
import structlog
from anyio.abc import TaskGroup
from attrs import evolve

from .errors import (
    DeadlineExceeded,
    OwnershipLost,
    SojournError,
    StaleEpoch,
    StorageFull,
    StoreError,
    StoreUnavailable,
    UnusableMirror,
)
from .mirror_waiting import Behind, MirrorWaiting
from .ports import Mirror, MirrorAnswer, MirrorUpdate

T = TypeVar("T")

log = structlog.get_logger("sojourn.mirror")

BATCH_SESSIONS_MAX = 256
BATCH_BYTES_MAX = 512 * 1024
BATCHES_MAX = 2
# At 16, 200 sessions under full load took 5.3 s to be level again, at 40 4.0 s, and nobody waited longer for a commit.
WHOLE_AT_ONCE = 40
CHORES_AT_ONCE = 16
CLAIM_EVERY_S = 2.0  # a claim lasts much longer
LEVEL_EVERY_S = 60.0
LEVEL_AT_ONCE = 1_024
AGAIN_S, AGAIN_S_MAX = 0.05, 1.0
UNUSABLE_AGAIN_S = 5.0


class MirrorWriter(MirrorWaiting):
    """One task between the runtime and a mirror.

    Args:
        connect: opens the mirror; called again until it succeeds. Raises StoreError.
        owner: who claims the mirror, for people and for the next start on the same data folder.
        held_bytes_max: what waits for the mirror at most, beside what is being sent.
        clock: monotonic seconds.
    """

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

    def _take_batch(self) -> list[Behind]:
        batch: list[Behind] = []
        size = 0
        while self._queue and len(batch) < BATCH_SESSIONS_MAX and size < BATCH_BYTES_MAX:
            session = self._queue.popleft()
            session.queued, session.busy = False, True
            if session.sent is None:
                # By place, because by keyword it costs half as much again.
                session.sent = MirrorUpdate(
                    session.session_id,
                    self._epoch,
                    session.first_seq,
                    session.first_seq + len(session.events) - 1,
                    session.events,
                    session.documents,
                )
                session.sent_bytes = session.held_bytes
                session.events, session.documents, session.held_bytes = [], {}, 0
                session.waits = False
            size += session.sent_bytes
            batch.append(session)
        return batch

    async def _send(self, batch: list[Behind]) -> None:
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
            self._acknowledged(batch, answers)
        finally:
            self._under_way -= 1
            self._news.wake()

    async def _send_whole(self, session: Behind) -> None:
        try:
            await self._replace(session)
        finally:
            self._copying -= 1
            self._news.wake()

    async def _replace(self, session: Behind) -> None:
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
            update = await self._source.whole(session_id, self._following)
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

    def _following(self) -> list[str]:
        """Who is sent whole next, in order."""
        return [session.session_id for session in islice(self._wholes, BATCH_SESSIONS_MAX)]

    def _try_again(self, session: Behind, error: StoreError) -> None:
        """Once the mirror is back."""
        self._forgo(session)
        session.whole = True
        self._rest(session)
        self._goes_away(error)

    def _not_sent(self, session: Behind, error: SojournError) -> None:
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
        again_s = AGAIN_S
        while True:
            try:
                if self._mirror is None:
                    self._mirror = await self._connect()
                await self._claim(self._mirror)
            except StoreError as error:
                self._goes_away(error)
                await anyio.sleep(UNUSABLE_AGAIN_S if isinstance(error, UnusableMirror) else again_s)
                again_s = min(2 * again_s, AGAIN_S_MAX)
                continue
            self._comes_back()
            self._expire()
            now = anyio.current_time()
            if now >= self._level_at:
                self._level_at = now + LEVEL_EVERY_S
                self._foreign.clear()
                await self._level()
            if self._strays_due:
                self._strays_due = False
                await self._look_for_strays(self._mirror)
            if not self._open:  # it takes a claim, and then goes away again
                await anyio.sleep(again_s)
                again_s = min(2 * again_s, AGAIN_S_MAX)
                continue
            again_s = AGAIN_S
            with anyio.move_on_after(CLAIM_EVERY_S):
                await self._keeper.wait()

    async def _claim(self, mirror: Mirror) -> None:
        """Where it was claimed just now, anything may stand there, and all of it is looked at.

        Raises:
            StaleEpoch: a later process on this data folder holds it.
            StoreError: it cannot be had; UnusableMirror: another data folder's runtime holds it.
        """
        claim = await mirror.claim(self._owner, self._epoch)
        if claim.answer is MirrorAnswer.FENCED:
            raise StaleEpoch(
                f"epoch {self._epoch} is fenced: a later process on this data folder writes the mirror; or this folder is an older "
                "copy, or the clock was put back, while the mirror could not be asked; where no other process runs, start this "
                "one again"
            )
        if claim.answer is MirrorAnswer.FOREIGN:
            raise UnusableMirror(
                f"the mirror's namespace is written by {claim.owner or 'something that is not Sojourn'}, or was until this "
                "process started; set mirror_namespace to another name, or, where that is gone for good, start this again"
            )
        if claim.answer is MirrorAnswer.GAP:
            self._level_at, self._strays_due = 0.0, True

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
        why = self._why_away()
        for session in self._behind.values():
            if session.askers:
                self._refuse(session, why)

    def _comes_back(self) -> None:
        if self._open:
            return
        assert self._mirror is not None
        log.info("mirror.connected", server=self._mirror.description, sessions_behind=len(self._behind))
        self._trouble = None
        self._open = True
        self._news.wake()

    def _expire(self) -> None:
        now = self._clock()
        for session in self._behind.values():
            for _, parked, until, _ in session.askers:
                if now >= until and not parked.done():
                    parked.set_exception(DeadlineExceeded())

    async def _level(self) -> None:
        """Asks of every active session whether the mirror stands where it does. What the mirror's going away breaks off is
        done anew once it is back."""
        for session_id, head in list(self._source.heads().items()):
            if not self._open:
                self._level_at = 0.0
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
            self._strays_due = True
            self._goes_away(error)
            return
        for session_id, head in strays.items():
            try:
                await self._source.found(mirror, session_id, head)
            except SojournError as error:
                if isinstance(error, OwnershipLost):
                    raise
                self._strays_due |= isinstance(error, (StoreUnavailable, StorageFull))
                log.error(
                    "mirror.stray_not_taken",
                    session=session_id,
                    error=str(error),
                    remedy="it is looked at again, at the next start at the latest; what stands in the mirror stays",
                )


def _pop(waiting: dict[str, T]) -> tuple[str, T]:
    session_id = next(iter(waiting))
    return session_id, waiting.pop(session_id)
