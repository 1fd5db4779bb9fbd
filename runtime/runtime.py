"""The embeddable runtime: one process that owns a data folder and keeps its sessions alive."""

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import anyio
import structlog
from attrs import frozen

from ..actors.commit import CommitStatistics
from ..actors.errors import (
    CallerError,
    Damaged,
    Missing,
)
from ..actors.kernel.lifecycle import set_aside
from ..actors.kernel.statistics import KernelStatistics
from ..actors.kernel.supervisor import ChildStatistics
from ..actors.kernel.watch import Down
from ..actors.mirror_waiting import Following, MirrorStatistics
from ..actors.ports import (
    CatalogQuery,
    Clock,
    JournalStatistics,
)
from ..actors.session.actor import (
    AcceptLoss,
    Batch,
    Done,
    read_both,
    read_record,
    read_state,
)
from ..actors.session.commands import ENDING_COMMANDS, Command
from ..actors.session.ids import new_session_id, session_id_for
from ..actors.session.model import Ack
from ..actors.session.record import decode_record
from ..actors.tiering.actor import (
    TIERING,
    Ended,
    Look,
    Sealed,
    TieringStatistics,
)
from .compactor import CompactionStatistics
from .facts import KEEP, Keep
from .live import Line, LiveStatistics, Outlet, Subscription, lines_of
from .monitor import wait_for_down
from .opening import Stores, SystemClock, open_stores
from .overview import Overview, sessions_of
from .quarantine import QuarantineStatistics
from .residents import MemoryStatistics
from .sessions import SEAL, Sessions
from .settings import Settings
from .stalls import StallStatistics
from .timers import TimerStatistics

log = structlog.get_logger("sojourn.runtime")

HISTORY_BYTES_A_READ = 1024 * 1024
_APPLIED, _DURABLE, _MIRRORED = Ack


@frozen(kw_only=True)
class RuntimeStatistics:
    """One look at every part of a runtime."""

    epoch: int
    kernel: KernelStatistics
    commit: CommitStatistics
    journal: JournalStatistics
    live: LiveStatistics
    children: tuple[ChildStatistics, ...]
    catalog_behind: int
    snapshots_written: int
    compaction: CompactionStatistics
    tiering: TieringStatistics
    mirror: MirrorStatistics | None
    memory: MemoryStatistics
    stalls: StallStatistics
    timers: TimerStatistics
    quarantine: QuarantineStatistics


class Runtime(Sessions):
    """Sessions, by id. Enter `Runtime.open(settings)` and use what it gives within that context, on its event loop.

    Attributes:
        quarantine: messages and sessions that are set aside.

    Every method but `statistics` may raise NotOpen outside that context, and StoreError where a store fails.
    """

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator["Runtime"]:
        """Own the data folder and run until the context is left; then everything acknowledged is on disk.

        Raises:
            FolderInUse: another process owns it. Nothing was changed.
            UnusableFolder: it cannot be written, or is of a newer format. Nothing was changed.
            StaleEpoch: out of the context: another process has taken the folder over, and this one must stop.
        """
        async with open_stores(settings) as stores, cls.over(settings, stores, SystemClock()) as runtime:
            with runtime._stalls.watching():
                yield runtime

    @classmethod
    @asynccontextmanager
    async def over(cls, settings: Settings, stores: Stores, clock: Clock) -> AsyncIterator["Runtime"]:
        """Run over stores that the caller has opened, and closes afterwards. Stalls are not watched: `clock` need not be the
        machine's."""
        # Raised once, and durable before use: a late write of an earlier owner carries a lower one and is refused.
        epoch = max(stores.journal.epoch, await stores.catalog.epoch())
        if stores.mirror is not None:
            epoch = max(epoch, await stores.mirror.epoch(epoch))
        epoch += 1
        runtime = cls(settings, stores, clock, epoch)
        marks = runtime.quarantine.open(await stores.journal.marks(), stores.inflight.left())
        await stores.journal.append([runtime._epoch_mark(), *marks])
        runtime.quarantine.marked(marks)
        stores.inflight.page[0] = 0
        try:
            async with anyio.create_task_group() as tasks:
                started = anyio.Event()
                tasks.start_soon(runtime._tree.run, started.set)
                await started.wait()
                await runtime._catch_up_catalog()
                runtime.is_open = True
                runtime._timekeeper.open()
                runtime._kernel.tell_or_bury(TIERING, Look(sweep=True))
                try:
                    yield runtime
                finally:
                    runtime.is_open = False
                    runtime._hub.close()
                    tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            # The host's own error, or the one that ended the tree, as it was raised: a group of one says no more.
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
                error = error.exceptions[0]
            raise error from error.__cause__
        finally:
            runtime._kernel.stop()
            if runtime._mirror is not None:
                runtime._mirror.stop()

    # -- changing --------------------------------------------------------------------------------------------------

    async def create(
        self, command: Command, *, ack: Ack = Ack.DURABLE, size_bytes: int = 256
    ) -> tuple[dict[str, Any], bool]:
        """Create a session by a `session.create` command (`wire.read_create`).

        Returns:
            Its public record, and whether it was there already: the same command id finds the same session.

        Raises:
            IdempotencyMismatch: that command id created a session with another body.
        """
        if command.command_id is not None:
            session_id = session_id_for(command.command_id, command.body.user_id)  # type: ignore[union-attr]
        else:
            session_id = new_session_id(self._clock.now(), secrets.token_bytes(10))
            self._new_ids.add(session_id)
        try:
            done: Done = await self._send(session_id, command, ack, None, size_bytes)
        finally:
            self._new_ids.discard(session_id)
        if ack is _MIRRORED:
            await self._reached(session_id, done.seq, None)
        record = await self._moved_record(session_id) if done.duplicate else None
        if record is None:
            # Not by `record`: with an early answer the journal may not know the session yet.
            record = await self._look(session_id, read_record(self.epoch, self._snapshotter.path(session_id)))
        return self._completed(record), done.duplicate

    async def ask(
        self,
        session_id: str,
        command: Command,
        *,
        ack: Ack = Ack.DURABLE,
        deadline_s: float | None = None,
        size_bytes: int = 256,
    ) -> Done:
        """Send one command and wait until it has come as far as `ack` says.

        Args:
            deadline_s: how long to wait for that; None: `settings.ask_deadline_s`.
            size_bytes: its length on the wire, for the mailbox's bounds.

        Raises:
            NoSuchSession, Rejected: it has no effect, and why.
            MailboxFull, StorageFull: nothing was done; try again later.
            DeadlineExceeded: the outcome is unknown; sending the same command id again is safe.
            Quarantined: it crashed the session twice and was set aside.
        """
        kernel = self._kernel
        if session_id not in kernel.cells:
            await self._must_exist(session_id)
        # `_send`, inlined: a call between them costs a thirtieth of an ask.
        if ack is not _DURABLE or not self.is_open or self._writer.refusing is not None:
            self._must_take(ack)
        parked = self._park()
        reply = parked if ack is not _MIRRORED else self._following(session_id, parked, deadline_s)
        kernel.ask(
            session_id,
            command,
            reply,
            self.settings.ask_deadline_s if deadline_s is None else deadline_s,
            size_bytes,
            ack is _APPLIED,
        )
        done: Done | None = None
        try:
            done = await parked
        finally:
            # Where the mirror refuses, or takes too long, it is done all the same.
            if done is not None or (isinstance(reply, Following) and reply.is_durable):
                if command.type in ENDING_COMMANDS:
                    self._ended(session_id, Ended(session_id))
                elif command.type == SEAL:
                    self._ended(session_id, Sealed(session_id))
            # An error that leaves holds this frame by its traceback, and the two hold the error: see `Following`.
            del parked, reply
        assert done is not None
        return done

    async def ask_batch(
        self,
        session_id: str,
        commands: Sequence[Command | CallerError],
        *,
        ack: Ack = Ack.DURABLE,
        deadline_s: float | None = None,
        size_bytes: int = 256,
    ) -> list[Done | CallerError]:
        """Send several commands as one envelope, one turn and one commit; each is judged by itself, in order. A
        CallerError among them (a line that could not be read) comes back in its place. Raises as `ask`, for the whole."""
        if session_id not in self._kernel.cells:
            await self._must_exist(session_id)
        answers: list[Done | CallerError] = await self._send(
            session_id, Batch(commands), ack, deadline_s, size_bytes
        )
        done = {
            command.type
            for command, answer in zip(commands, answers, strict=True)
            if isinstance(command, Command) and isinstance(answer, Done)
        }
        try:
            if ack is _MIRRORED and done:
                seqs = [answer.seq for answer in answers if isinstance(answer, Done)]
                await self._reached(session_id, max(seqs), deadline_s)
        finally:
            if SEAL in done:
                self._ended(session_id, Sealed(session_id))
            elif done & ENDING_COMMANDS:
                self._ended(session_id, Ended(session_id))
            else:
                self._presence.sign(session_id, self._kernel.now)
        return answers

    async def heartbeat(self, session_id: str) -> None:
        """A sign of life of the session's reporter. Raises NoSuchSession."""
        await self._must_exist(session_id)
        self._presence.sign(session_id, self._clock.monotonic())

    async def accept_loss(self, session_id: str) -> Done:
        """Go on without the events that a set-aside session has lost: `history.lost` says which, for ever.

        Returns:
            Its seq; `duplicate` where the session has lost nothing.

        Raises:
            NoSuchSession: there is none.
            Damaged: so much is lost that no state can be made of the rest; or the session was handed over.
            IntensityExceeded: it is set aside because it crashes; release it first.
        """
        await self._must_exist(session_id)
        if session_id not in self._journal.heads():
            raise Damaged(
                f"session {session_id} was handed over, and nothing is added to it: what it has lost can only be put back, "
                "from a copy of its folder"
            )
        if self.quarantine.hold(session_id) is not None:
            raise set_aside(self._kernel.cells[session_id])
        recovered = await self._recovery.recover(session_id)
        if recovered.missing is None:
            if session_id in self._set_aside:
                await self._drop(session_id)  # it was put back meanwhile
                self._projector.mark([session_id])
            return Done(recovered.state.seq, True)
        first_seq, last_seq = recovered.missing
        async with self._shelves.alone(session_id):
            if self._journal.heads().get(session_id, 0) < last_seq:
                await self._compactor.write_segments(session_id, over_holes=True)
                await self._journal.release({session_id: last_seq})
            self._accepting.add(session_id)
            try:
                await self._drop(session_id)
                done: Done = await self._kernel.ask(
                    session_id,
                    AcceptLoss(first_seq, last_seq),
                    self._park(),
                    deadline_s=self.settings.ask_deadline_s,
                    control=True,
                )
            finally:
                self._accepting.discard(session_id)
            self._behind.pop(session_id, None)
            self._set_aside.pop(session_id, None)
        log.warning(
            "session.loss_accepted",
            session=session_id,
            first_seq=first_seq,
            last_seq=last_seq,
            remedy="none is needed: a person asked for it",
        )
        return done

    async def set_facts(
        self,
        session_id: str,
        *,
        title: str | Keep | None = KEEP,
        tags: Sequence[str] | Keep | None = KEEP,
    ) -> dict[str, Any]:
        """Change what may change of a sealed session; None: as it was recorded. Durable on return.

        Returns:
            Its public record.

        Raises:
            InvalidCommand: a value is over its limit; nothing was changed.
            NoSuchSession: there is none.
            NotSealed: it is not sealed yet.
        """
        await self._must_exist(session_id)
        return self._completed(await self._tiering.set_facts(session_id, title, tags))

    # -- reading ---------------------------------------------------------------------------------------------------

    async def record(self, session_id: str) -> dict[str, Any]:
        """The public record. Readers of the same moment may be given the same values, so they are not to be changed.

        Raises:
            NoSuchSession: there is none.
        """
        await self._must_exist(session_id)
        if (moved := await self._moved_record(session_id)) is not None:
            return self._completed(moved)
        if self.quarantine.hold(session_id) is not None:
            row = await self._catalog.get(session_id)
            if row is not None:  # told in any case, whatever crashes it
                return self._completed(decode_record(row.record))
        return self._completed(
            await self._look_together(
                session_id, read_record(self.epoch, self._snapshotter.path(session_id)), "record"
            )
        )

    async def state(self, session_id: str) -> tuple[int, bytes]:
        """(seq, the state as canonical JSON). Raises NoSuchSession."""
        await self._must_exist(session_id)
        answer: tuple[int, bytes] = await self._look_together(session_id, read_state(), "state")
        return answer

    async def snapshot(self, session_id: str) -> tuple[dict[str, Any], int, bytes]:
        """(public record, seq, state as canonical JSON), all of one moment. As `record`."""
        await self._must_exist(session_id)
        moved = await self._moved_record(session_id)
        record, seq, state = await self._look_together(
            session_id, read_both(self.epoch, self._snapshotter.path(session_id)), "both"
        )
        return self._completed(moved or record), seq, state

    async def events(self, session_id: str, *, after: int = 0) -> AsyncGenerator[Line]:
        """The durable events above `after` that are there now, read page by page. Raises NoSuchSession at the first."""
        await self._must_exist(session_id)
        head = await self._history.head(session_id)
        while after < head:
            records = await self._history.read(session_id, after, bytes_max=HISTORY_BYTES_A_READ)
            if not records:
                raise Missing(session_id, after + 1, head)
            for record in records:
                for line in lines_of(record, after):
                    after = line.seq
                    yield line

    @asynccontextmanager
    async def stream(self, session_id: str, *, after: int) -> AsyncIterator[AsyncIterator[Line]]:
        """The events above `after`, those there and those to come: each once, in order, until the runtime closes. Raises
        NoSuchSession."""
        async with self.follow(session_id, after=after) as place, aclosing(place.lines()) as lines:
            yield lines

    @asynccontextmanager
    async def follow(
        self, session_id: str, *, after: int, outlet: Outlet | None = None
    ) -> AsyncIterator[Subscription]:
        """As `stream`, record by record, for whoever sends the same to many. What comes while the reader waits in `take` goes
        to `outlet` where it takes it, and past the reader."""
        await self._must_exist(session_id)
        with self._hub.subscribe(session_id, after, outlet) as place:
            yield place

    async def page(self, query: CatalogQuery) -> list[dict[str, Any]]:
        """Public records, newest first; everything that was durable before the call is in it."""
        self._must_be_open()
        return [self._completed(decode_record(row.record)) for row in await self._projector.page(query)]

    async def monitor(self, session_id: str) -> Down:
        """Wait until the session falls (it crashed, or is set aside for its crashes) or leaves (it was handed over). Leaving
        memory is neither. Cancel the wait to end the watch.

        Returns:
            What happened; at once for a session that is set aside, was handed over or is not there.

        Raises:
            MonitorsFull: 10,000 are watched already.
            Stopped: the runtime was closed first.
        """
        self._must_be_open()
        return await wait_for_down(self._kernel, self._catalog, session_id, self._park())

    def release_child(self, child_id: str) -> bool:
        """Let a quarantined part of the runtime (`statistics().children`) start again. See Supervisor.release."""
        return self._tree.release(child_id)

    def statistics(self) -> RuntimeStatistics:
        """A frozen value."""
        return RuntimeStatistics(
            epoch=self.epoch,
            kernel=self._kernel.statistics(),
            commit=self._writer.statistics(),
            journal=self._journal.statistics(),
            live=self._hub.statistics(),
            children=self._tree.statistics(),
            catalog_behind=self._projector.behind,
            snapshots_written=self._snapshotter.written,
            compaction=self._compactor.statistics(),
            tiering=self._tiering_actor.statistics() if self._tiering_actor else TieringStatistics(),
            mirror=self.mirror_statistics(),
            memory=self._residents.statistics(),
            stalls=self._stalls.statistics(),
            timers=self._timekeeper.statistics(),
            quarantine=self.quarantine.statistics(),
        )

    async def overview(self, *, sessions_max: int = 50) -> Overview:
        """The statistics, and at most so many of the sessions in memory: those in trouble first. Read-only."""
        self._must_be_open()
        total, sessions = await sessions_of(self._kernel, self._journal, self.mirrored_seq, sessions_max)
        return Overview(
            at=self._clock.now(),
            sessions_total=total,
            sessions=sessions,
            dead_letters=dict(self._kernel.dead_letters.counts),
            statistics=self.statistics(),
        )

    def mirror_statistics(self) -> MirrorStatistics | None:
        """A frozen value; None where there is no mirror."""
        return self._mirror.statistics() if self._mirror is not None else None

    def mirrored_seq(self, session_id: str) -> int | None:
        """How far an active session stands in the mirror; None where there is none, or that is not known now."""
        return self._mirror.mirrored_seq(session_id) if self._mirror is not None else None

    def readiness(self) -> dict[str, str]:
        """Each part and `ok`, or what is wrong with it."""
        refusing = self._writer.refusing
        found = {"journal": str(refusing) if refusing is not None else "ok"}
        for child in self._tree.statistics():
            found[child.child_id] = "ok" if child.state == "running" else child.last_error or child.state
        return found

    def idle_for_s(self) -> float:
        """Seconds since the last sign of life of any session, or the end of one; 0 while a session that has not ended
        shows signs of life."""
        return self._presence.idle_for_s()

    # -- within ----------------------------------------------------------------------------------------------------

    async def _send_again(self, session_id: str, command: Command) -> Done:
        if command.type == "session.create":  # it was set aside, so there is no such session yet
            done: Done = await self._send(session_id, command, Ack.DURABLE, None, 256)
            return done
        return await self.ask(session_id, command)
