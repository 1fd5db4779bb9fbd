"""The embeddable runtime: one process that owns a data folder and keeps its sessions alive."""

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

import anyio
import structlog
from attrs import frozen

from ..actors.commit import CommitStatistics, CommitWriter
from ..actors.errors import (
    CallerError,
    Damaged,
    DurabilityUnavailable,
    Missing,
    NoSuchSession,
    NotOpen,
    OwnershipLost,
    SessionSealed,
    SojournError,
)
from ..actors.kernel.actor import Actor, ActorContext, ActorSpec, CellState
from ..actors.kernel.driver import Driver
from ..actors.kernel.lifecycle import set_aside
from ..actors.kernel.mailbox import MailboxLimits
from ..actors.kernel.park import Parked, parking
from ..actors.kernel.scheduler import Kernel
from ..actors.kernel.statistics import KernelStatistics
from ..actors.kernel.supervisor import ChildStatistics, Supervisor
from ..actors.kernel.watch import Down
from ..actors.mirroring import MirrorStatistics, MirrorWriter
from ..actors.ports import (
    CatalogQuery,
    Clock,
    JournalStatistics,
    Record,
    RecordKind,
)
from ..actors.session.actor import (
    AcceptLoss,
    Batch,
    Done,
    GiveUp,
    Read,
    ReplayFailure,
    SetAsideActor,
    Surroundings,
    Tick,
    Ticked,
    UnreplayableActor,
    read_both,
    read_copy,
    read_record,
    read_state,
)
from ..actors.session.commands import ENDING_COMMANDS, Command, Seal
from ..actors.session.ids import new_session_id, session_id_for
from ..actors.session.model import Ack, SessionState
from ..actors.session.record import decode_record, public_record
from ..actors.tiering.actor import (
    TIERING,
    Ended,
    Look,
    Sealed,
    TieringActor,
    TieringStatistics,
)
from ..actors.tiering.core import TieringLimits
from .abandoning import Abandoner
from .compactor import CompactionStatistics, Compactor
from .event_log import EventLog
from .facts import KEEP, Keep
from .layout import snapshot_path
from .live import Line, LiveHub, LiveStatistics, lines_of
from .mirror_import import MirrorImport
from .mirror_source import MirroredSessions
from .monitor import wait_for_down
from .opening import Stores, SystemClock, open_stores
from .overview import Overview, sessions_of
from .presence import Presence
from .projector import CatalogProjector
from .quarantine import Quarantine, QuarantineStatistics, quarantined_document
from .recovery import History, Recovery
from .residents import MemoryStatistics, Residents
from .settings import Settings
from .shelves import ACTIVE, Shelves
from .snapshots import Snapshotter
from .stalls import StallStatistics, StallWatch
from .tiering import Tiering, archive_place, look_every_s
from .timers import Timekeeper, TimerStatistics
from .tree import runtime_tree

if TYPE_CHECKING:
    from .mirror_place import MirrorPlace

log = structlog.get_logger("sojourn.runtime")

HISTORY_BYTES_A_READ = 1024 * 1024
COPY_WAIT_S = 0.5
SEAL = "session.seal"
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


class Runtime:
    """Sessions, by id. Enter `Runtime.open(settings)` and use what it gives within that context, on its event loop.

    Attributes:
        quarantine: messages and sessions that are set aside.

    Every method but `statistics` may raise NotOpen outside that context, and StoreError where a store fails.
    """

    def __init__(self, settings: Settings, stores: Stores, clock: Clock, epoch: int) -> None:
        self.settings = settings
        self.epoch = epoch
        self.is_open = False
        self._clock = clock
        self._journal = stores.journal
        self._catalog = stores.catalog
        self._behind: dict[str, int] = {}
        self._accepting: set[str] = set()
        self._set_aside: dict[str, tuple[int, int]] = {}
        shelves = self._shelves = Shelves(
            journal=stores.journal, catalog=stores.catalog, recent=stores.objects, archive=stores.archive
        )
        event_log = EventLog(stores.journal, shelves)
        self._recovery = Recovery(
            journal=stores.journal,
            event_log=event_log,
            shelves=shelves,
            limits=settings.limits,
            known_heads=self._behind,
        )
        self._history = History(event_log, self._recovery)
        place = stores.mirror
        self._around = Surroundings(
            epoch=epoch,
            limits=settings.limits,
            now=clock.now(),
            note=stores.inflight.note,
            page=stores.inflight.page,
            mirrored=place is not None,
        )
        self._unreplayable: dict[str, ReplayFailure] = {}
        self.quarantine = Quarantine(
            journal=stores.journal,
            inflight=stores.inflight,
            kernel=lambda: self._kernel,
            clock=clock,
            epoch=epoch,
            send=self._send_again,
            look=self._look,
        )
        self._park = parking()
        self._kernel = Kernel(
            clock=clock.monotonic,
            dynamic=ActorSpec(
                start=self._start_session,
                mailbox=MailboxLimits(
                    messages_max=settings.mailbox_messages_max, bytes_max=settings.mailbox_bytes_max
                ),
                keeper=self.quarantine,
            ),
            inbound_bytes_max=settings.inbound_bytes_max,
            starts_max=settings.recoveries_max,
            place=self._place,
            before_step=self._read_clock,
        )
        self._hub = LiveHub(stores.journal, self._history)
        self._projector = CatalogProjector(stores.catalog, self._record_to_list)
        self._snapshotter = Snapshotter(
            journal=stores.journal,
            shelves=shelves,
            epoch=epoch,
            copy=self._copy,
            interval_s=settings.snapshot_interval_s,
            journal_bytes_min=settings.snapshot_journal_bytes_min,
            written=self._snapshotted,
        )
        self._compactor = Compactor(
            journal=stores.journal,
            event_log=event_log,
            history=self._history,
            shelves=shelves,
            snapshotter=self._snapshotter,
            bytes_max=settings.journal_bytes_max,
        )
        self._tiering = Tiering(
            journal=stores.journal,
            catalog=stores.catalog,
            shelves=shelves,
            event_log=event_log,
            history=self._history,
            recovery=self._recovery,
            clock=clock,
            seal=self._seal,
            moved=self._has_moved,
            archive_at=archive_place(settings.archive),
            recent_days=settings.recent_days,
            seal_after_s=settings.seal_after_s,
        )
        self._tiering_actor: TieringActor | None = None
        self._kernel.spawn(
            TIERING,
            # What does not fit into its mailbox is found again by its next look at the catalog.
            ActorSpec(start=self._start_tiering, mailbox=MailboxLimits(messages_max=10_000)),
        )
        self._writer = CommitWriter(
            stores.journal,
            self._kernel,
            self._publish,
            self.quarantine.marked,
            self._epoch_mark,
            self._compactor.room,
        )
        self._mirror = self._mirror_writer(place, event_log) if place is not None else None
        self._presence = Presence(clock)
        self._abandoner = Abandoner(
            journal=stores.journal,
            catalog=stores.catalog,
            clock=clock,
            silent_s=self._presence.silent_s,
            give_up=self._give_up,
            is_set_aside=self._is_set_aside,
            hindered=lambda: not self.is_open or self._writer.refusing is not None,
            after_s=settings.abandon_after_s,
        )
        self._residents = Residents(
            self._kernel,
            self._left_memory,
            after_s=settings.passivate_after_s,
            sessions_max=settings.sessions_in_memory_max,
            states_bytes_max=settings.states_in_memory_bytes_max,
        )
        self._timekeeper = Timekeeper(
            catalog=stores.catalog,
            clock=clock,
            level=self._projector.flush,
            tick=self._tick,
            hindered=lambda: self._writer.refusing is not None,
        )
        self._tree: Supervisor = runtime_tree(
            commit=self._writer.run,
            kernel=Driver(self._kernel).run,
            catalog=self._projector.run,
            snapshots=self._snapshotter.run,
            compaction=self._compactor.run,
            passivation=self._residents.run,
            abandoning=self._abandoner.run,
            quarantine=self.quarantine.run,
            mirror=self._mirror.run if self._mirror is not None else None,
            mirror_server=place.watch if place is not None and place.private else None,
            timers=self._timekeeper.run,
        )
        self._stalls = StallWatch(self._kernel, settings.stall_s)

    def _mirror_writer(self, place: "MirrorPlace", event_log: EventLog) -> MirrorWriter:
        self._mirror_import = MirrorImport(
            journal=self._journal,
            shelves=self._shelves,
            event_log=event_log,
            compactor=self._compactor,
            clock=self._clock,
            epoch=self.epoch,
            drop=self._drop,
            imported=lambda session_id: self._projector.mark([session_id]),
        )
        sessions = MirroredSessions(
            journal=self._journal,
            catalog=self._catalog,
            event_log=event_log,
            snapshotter=self._snapshotter,
            epoch=self.epoch,
            copy=self._copy,
            in_memory=self._kernel.cells.__contains__,
            import_=self._mirror_import,
            strays=not place.private,
        )
        return MirrorWriter(place.connect, sessions, owner=place.owner, epoch=self.epoch)

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
        done: Done = await self._send(session_id, command, ack, None, size_bytes)
        if ack is _MIRRORED:
            await self._reached(session_id, done.seq, None)
        if not done.duplicate:
            self._presence.sign(session_id, self._kernel.now)
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
        done: Done = await kernel.ask(
            session_id,
            command,
            self._park(),
            self.settings.ask_deadline_s if deadline_s is None else deadline_s,
            size_bytes,
            ack is _APPLIED,
        )
        if ack is _MIRRORED:
            await self._reached(session_id, done.seq, deadline_s)
        if command.type in ENDING_COMMANDS:
            self._ended(session_id, Ended(session_id))
        elif command.type == SEAL:
            self._ended(session_id, Sealed(session_id))
        else:
            self._presence.sign(session_id, kernel.now)  # fresh: it has just stepped to answer us
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
        if ack is _MIRRORED:
            seqs = [answer.seq for answer in answers if isinstance(answer, Done)]
            await self._reached(session_id, max(seqs, default=0), deadline_s)
        done = {
            command.type
            for command, answer in zip(commands, answers, strict=True)
            if isinstance(command, Command) and isinstance(answer, Done)
        }
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

    def _send(
        self, session_id: str, message: Command | Batch, ack: Ack, deadline_s: float | None, size_bytes: int
    ) -> Parked:
        self._must_take(ack)
        return self._kernel.ask(
            session_id,
            message,
            self._park(),
            deadline_s=self.settings.ask_deadline_s if deadline_s is None else deadline_s,
            size_bytes=size_bytes,
            early=ack is _APPLIED,
        )

    def _must_take(self, ack: Ack) -> None:
        self._must_be_open()
        if self._writer.refusing is not None:
            raise self._writer.refusing
        if ack is _MIRRORED and self._mirror is None:
            raise DurabilityUnavailable(ack.value, None)

    async def _reached(self, session_id: str, seq: int, deadline_s: float | None) -> None:
        """What is durable up to `seq` is mirrored, too."""
        assert self._mirror is not None
        deadline_s = self.settings.ask_deadline_s if deadline_s is None else deadline_s
        await self._mirror.reached(session_id, seq, self._park(), deadline_s)

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
        """The public record. Raises NoSuchSession."""
        await self._must_exist(session_id)
        if (moved := await self._moved_record(session_id)) is not None:
            return self._completed(moved)
        if self.quarantine.hold(session_id) is not None:
            row = await self._catalog.get(session_id)
            if row is not None:  # told in any case, whatever crashes it
                return self._completed(decode_record(row.record))
        return self._completed(
            await self._look(session_id, read_record(self.epoch, self._snapshotter.path(session_id)))
        )

    async def state(self, session_id: str) -> tuple[int, bytes]:
        """(seq, the state as canonical JSON). Raises NoSuchSession."""
        await self._must_exist(session_id)
        answer: tuple[int, bytes] = await self._look(session_id, read_state())
        return answer

    async def snapshot(self, session_id: str) -> tuple[dict[str, Any], int, bytes]:
        """(public record, seq, state as canonical JSON), all of one moment. Raises NoSuchSession."""
        await self._must_exist(session_id)
        moved = await self._moved_record(session_id)
        record, seq, state = await self._look(
            session_id, read_both(self.epoch, self._snapshotter.path(session_id))
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
        await self._must_exist(session_id)
        with self._hub.subscribe(session_id, after) as subscription:
            async with aclosing(subscription.lines()) as lines:
                yield lines

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

    def _must_be_open(self) -> None:
        if not self.is_open:
            raise NotOpen

    async def _must_exist(self, session_id: str) -> None:
        self._must_be_open()
        if session_id not in self._journal.heads() and await self._catalog.get(session_id) is None:
            raise NoSuchSession(session_id)

    async def _moved_record(self, session_id: str) -> dict[str, Any] | None:
        """The record of a session that was handed over; None for one that is active, or not there."""
        if session_id in self._journal.heads():
            return None
        row = await self._catalog.get(session_id)
        return decode_record(row.record) if row is not None and row.tier != ACTIVE else None

    def _look(self, session_id: str, read: Read) -> Awaitable[Any]:
        """A read overtakes what waits to change, and is answered while the journal refuses changes."""
        if self.quarantine.hold(session_id) is not None:
            return self._look_at_stored(session_id, read)
        return self._kernel.ask(
            session_id, read, self._park(), deadline_s=self.settings.ask_deadline_s, control=True
        )

    async def _look_at_stored(self, session_id: str, read: Read) -> Any:
        """Of a session that is set aside: its actor is not started. What is stored can be read all the same, unless it is
        what crashes."""
        try:
            return read.look((await self._recovery.recover(session_id)).state)
        except SojournError:
            raise
        except Exception as error:
            raise set_aside(self._kernel.cells[session_id]) from error

    async def _send_again(self, session_id: str, command: Command) -> Done:
        if command.type == "session.create":  # it was set aside, so there is no such session yet
            done: Done = await self._send(session_id, command, Ack.DURABLE, None, 256)
            return done
        return await self.ask(session_id, command)

    async def _start_session(self, context: ActorContext) -> Actor:
        session_id = context.actor_id
        recovered = await self._recovery.recover(session_id, losses_accepted=session_id in self._accepting)
        if recovered.missing is not None and await self._filled(session_id, *recovered.missing):
            recovered = await self._recovery.recover(session_id)
        self._snapshotter.recovered(session_id, recovered.snapshot_seq)
        self._residents.started(recovered.state.size_bytes)
        if recovered.missing is not None and session_id not in self._accepting:
            self._set_aside[session_id] = recovered.missing
            return SetAsideActor(recovered.state, recovered.missing)
        if recovered.failure is not None:
            self._unreplayable[session_id] = recovered.failure
            return UnreplayableActor(recovered.state, recovered.failure)
        self._unreplayable.pop(session_id, None)
        return self.quarantine.actor(recovered.state, self._around)

    async def _filled(self, session_id: str, first_seq: int, last_seq: int) -> bool:
        """Whether the mirror had what a session has lost, and it is here now."""
        mirror = self._mirror.mirror if self._mirror is not None else None
        if mirror is None or session_id in self._accepting:
            return False
        try:
            return await self._mirror_import.fill(mirror, session_id, first_seq, last_seq)
        except OwnershipLost:
            raise
        except SojournError as error:
            log.error(
                "session.not_filled_from_mirror",
                session=session_id,
                error=str(error),
                remedy="it is set aside, as without a mirror; what is lost is said",
            )
            return False

    async def _copy(self, session_id: str) -> SessionState:
        """For a snapshot. A session that is not in memory is read without bringing it there. One whose commit waits for
        room in the journal cannot answer before compaction has made some: it is read from what is stored."""
        if session_id in self._kernel.cells:
            with anyio.move_on_after(COPY_WAIT_S):
                copy: SessionState = await self._look(session_id, read_copy())
                return copy
        return (await self._recovery.recover(session_id)).whole()

    async def _drop(self, session_id: str) -> None:
        """The session leaves memory once it rests; its next message reads it anew. One that is set aside is not there."""
        cells = self._kernel.cells
        while session_id in cells and not self._kernel.passivate(session_id):
            if cells[session_id].state is CellState.QUARANTINED:
                break
            await anyio.sleep(0.01)
        self._left_memory(session_id)

    def _is_set_aside(self, session_id: str) -> bool:
        return (
            session_id in self._set_aside
            or session_id in self._unreplayable
            or self.quarantine.hold(session_id) is not None
        )

    def _read_clock(self) -> None:
        self._around.now = self._clock.now()

    def _publish(self, records: Sequence[Record]) -> None:
        self._hub.publish(records)
        session_ids = [record.session_id for record in records]
        self._projector.mark(session_ids)
        self._snapshotter.mark(session_ids)
        self._compactor.notice()
        if self._mirror is not None:
            self._mirror.offer(records)
        if due := self._around.due:
            self._timekeeper.note(due)
            due.clear()

    def _epoch_mark(self) -> Record:
        return Record("", 0, 0, self.epoch, b"", RecordKind.EPOCH)

    async def _catch_up_catalog(self) -> None:
        rows = await self._catalog.heads()
        heads = self._journal.heads()
        self._projector.mark([id_ for id_, seq in heads.items() if rows.get(id_, 0) < seq])
        # Where the catalog is ahead, the journal has lost its end.
        self._behind.update({id_: seq for id_, seq in rows.items() if id_ in heads and heads[id_] < seq})

    async def _record_to_list(self, session_id: str) -> dict[str, Any] | None:
        """See `_stored_record`."""
        record = await self._stored_record(session_id)
        if record is not None and record["next_due_at"] is not None:
            self._timekeeper.note({session_id: record["next_due_at"]})
        return record

    async def _tick(self, session_id: str) -> datetime | None:
        """The session fires what is due; one that was brought into memory for that leaves it again. A control message: what is
        queued does not keep a time limit from being kept. Returns when it wants to be asked next."""
        if session_id not in self._journal.heads():
            return None
        was_away = session_id not in self._kernel.cells
        ticked: Ticked = await self._kernel.ask(
            session_id, Tick(), self._park(), deadline_s=self.settings.ask_deadline_s, control=True
        )
        if ticked.ended:
            self._ended(session_id, Ended(session_id))
        if was_away and self._kernel.passivate(session_id):
            self._left_memory(session_id)
        return ticked.next_due_at

    async def _stored_record(self, session_id: str) -> dict[str, Any] | None:
        """For the catalog. A session that is not in memory is read without bringing it there. One that was handed over has
        its row from there."""
        if session_id not in self._journal.heads():
            return None
        if session_id in self._kernel.cells:
            record: dict[str, Any] = await self._look(
                session_id, read_record(self.epoch, self._snapshotter.path(session_id))
            )
            if record["ended_at"] is not None:
                self._presence.forget(session_id)  # a late line of an ended session is no sign of life
            return record
        recovered = await self._recovery.recover(session_id)
        state = recovered.state
        if state.header is None:
            return None
        path = snapshot_path(session_id, recovered.snapshot_seq)
        return public_record(state, epoch=recovered.epoch, snapshot_path=path)

    def _completed(self, record: dict[str, Any]) -> dict[str, Any]:
        session_id = record["session_id"]
        return self._presence.completed(
            record,
            self._set_aside.get(session_id),
            quarantined_document(self.quarantine.hold(session_id), self._unreplayable.get(session_id)),
        )

    def _snapshotted(self, session_id: str, seq: int) -> None:
        if self._mirror is not None and seq:
            self._mirror.snapshotted(session_id, seq)

    def _left_memory(self, session_id: str) -> None:
        self._snapshotter.forget(session_id)
        self._snapshotted(session_id, self._journal.heads().get(session_id, 0))

    async def _give_up(self, session_id: str, message: GiveUp) -> bool:
        self._must_take(_DURABLE)
        done: Done | None = await self._kernel.ask(
            session_id, message, self._park(), deadline_s=self.settings.ask_deadline_s
        )
        if done is not None:
            self._ended(session_id, Ended(session_id))
        return done is not None

    def _ended(self, session_id: str, news: Ended | Sealed) -> None:
        self._presence.ended(session_id)
        self._kernel.tell_or_bury(TIERING, news)

    async def _seal(self, session_id: str) -> None:
        with suppress(SessionSealed):
            await self._send(session_id, Command(SEAL, Seal()), Ack.DURABLE, None, 0)

    def _has_moved(self, session_id: str, tier: str) -> None:
        """Its next message reads it from where it is now."""
        self._compactor.forget(session_id)
        if self._mirror is not None:
            self._mirror.moved(session_id, tier)
        if self._kernel.passivate(session_id):
            self._snapshotter.forget(session_id)
        self._kernel.removed(session_id)

    def _place(self, session_id: str) -> tuple[int, int] | None:
        seq = self._journal.heads().get(session_id)
        return (self.epoch, seq) if seq is not None else None

    async def _start_tiering(self, context: ActorContext) -> Actor:
        self._tiering_actor = TieringActor(
            context,
            self._tiering,
            clock=self._clock.monotonic,
            limits=TieringLimits(at_once_max=self.settings.moves_at_once_max),
            seal_after_s=self.settings.seal_after_s,
            look_every_s=look_every_s(self.settings.recent_days),
        )
        return self._tiering_actor
