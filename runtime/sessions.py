"""What a runtime is made of, and how its parts serve each other. Its public face is `runtime.py`."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

import anyio
import structlog

from ..actors.commit import CommitWriter
from ..actors.errors import (
    DurabilityUnavailable,
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
from ..actors.kernel.supervisor import Supervisor
from ..actors.mirror_waiting import Following
from ..actors.mirroring import MirrorWriter
from ..actors.ports import (
    Clock,
    Record,
    RecordKind,
)
from ..actors.session.actor import (
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
    read_copy,
    read_record,
)
from ..actors.session.commands import Command, Seal
from ..actors.session.model import Ack, SessionState
from ..actors.session.record import decode_record, public_record
from ..actors.tiering.actor import (
    TIERING,
    Ended,
    Sealed,
    TieringActor,
)
from ..actors.tiering.core import TieringLimits
from .abandoning import Abandoner
from .compactor import Compactor
from .event_log import EventLog
from .layout import snapshot_path
from .live import LiveHub
from .mirror_import import MirrorImport
from .mirror_source import MirroredSessions
from .opening import Stores
from .presence import Presence
from .projector import CatalogProjector
from .quarantine import Quarantine, quarantined_document
from .recovery import History, Recovered, Recovery
from .residents import Residents
from .settings import Settings
from .shared_reads import SharedReads
from .shelves import ACTIVE, Shelves
from .snapshots import Snapshotter
from .stalls import StallWatch
from .tiering import Tiering, archive_place, look_every_s
from .timers import Timekeeper
from .tree import runtime_tree

if TYPE_CHECKING:
    from .mirror_place import MirrorPlace

log = structlog.get_logger("sojourn.runtime")

COPY_WAIT_S = 0.5
SEAL = "session.seal"
_APPLIED, _DURABLE, _MIRRORED = Ack


class Sessions(ABC):
    """The parts, wired. Nothing of it is for hosts."""

    def __init__(self, settings: Settings, stores: Stores, clock: Clock, epoch: int) -> None:
        self.settings = settings
        self.epoch = epoch
        self.is_open = False
        self._clock = clock
        self._journal = stores.journal
        self._catalog = stores.catalog
        self._behind: dict[str, int] = {}
        # Of sessions that left memory before their rows were written: no more than have rows to be written.
        self._records_to_list: dict[str, dict[str, Any]] = {}
        # Made here just now, for a session that is being created: nobody can have stored anything of it. To look for it all the
        # same, in the catalog and the folders, was most of what a creation took.
        self._new_ids: set[str] = set()
        self._accepting: set[str] = set()
        self._set_aside: dict[str, tuple[int, int]] = {}
        shelves = self._shelves = Shelves(
            journal=stores.journal, catalog=stores.catalog, recent=stores.objects, archive=stores.archive
        )
        event_log = EventLog(stores.journal, shelves)
        self._recovery = Recovery(
            epoch=epoch,
            short_bytes=settings.snapshot_journal_bytes_min,
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
            heard=self._heard,
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
        self._reads = SharedReads(self._ask_to_read)
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
            level=self._projector.level,
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
            live=self._hub.run,
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
        return MirrorWriter(
            place.connect, sessions, owner=place.owner, epoch=self.epoch, clock=self._clock.monotonic
        )

    # -- asking -----------------------------------------------------------------------------------------------------

    def _must_be_open(self) -> None:
        if not self.is_open:
            raise NotOpen

    def _must_take(self, ack: Ack) -> None:
        self._must_be_open()
        if self._writer.refusing is not None:
            raise self._writer.refusing
        if ack is _MIRRORED and self._mirror is None:
            raise DurabilityUnavailable(ack.value, None)

    async def _must_exist(self, session_id: str) -> None:
        self._must_be_open()
        if session_id not in self._journal.heads() and await self._catalog.get(session_id) is None:
            raise NoSuchSession(session_id)

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

    def _following(self, session_id: str, parked: Parked, deadline_s: float | None) -> Following:
        assert self._mirror is not None
        deadline_s = self.settings.ask_deadline_s if deadline_s is None else deadline_s
        return Following(self._mirror, session_id, parked, deadline_s)

    async def _reached(self, session_id: str, seq: int, deadline_s: float | None) -> None:
        """What is durable up to `seq` is mirrored, too."""
        assert self._mirror is not None
        deadline_s = self.settings.ask_deadline_s if deadline_s is None else deadline_s
        await self._mirror.reached(session_id, seq, self._park(), deadline_s)

    @abstractmethod
    async def _send_again(self, session_id: str, command: Command) -> Done:
        """A command that was set aside."""

    def _look(self, session_id: str, read: Read) -> Awaitable[Any]:
        """A read overtakes what waits to change, and is answered while the journal refuses changes."""
        if self.quarantine.hold(session_id) is not None:
            return self._look_at_stored(session_id, read)
        return self._ask_to_read(session_id, read, self._park())

    def _look_together(self, session_id: str, read: Read, kind: str) -> Awaitable[Any]:
        """As `_look`, in one turn with whoever asks the same meanwhile."""
        if self.quarantine.hold(session_id) is not None:
            return self._look_at_stored(session_id, read)
        return self._reads.look(session_id, read, kind)

    def _ask_to_read(self, session_id: str, read: Read, reply: Parked) -> Parked:
        return self._kernel.ask(
            session_id, read, reply, deadline_s=self.settings.ask_deadline_s, control=True
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

    # -- sessions come and go -----------------------------------------------------------------------------------------

    async def _start_session(self, context: ActorContext) -> Actor:
        session_id = context.actor_id
        if session_id in self._new_ids:
            self._new_ids.discard(session_id)  # one that crashes is recovered
            return self._started(
                Recovered(state=SessionState(session_id=session_id), epoch=0, snapshot_seq=0)
            )
        recovered = await self._recovery.recover(session_id, losses_accepted=session_id in self._accepting)
        if recovered.missing is not None and await self._filled(session_id, *recovered.missing):
            recovered = await self._recovery.recover(session_id)
        return self._started(recovered)

    def _started(self, recovered: Recovered) -> Actor:
        session_id = recovered.state.session_id
        self._snapshotter.recovered(session_id, recovered.snapshot_seq)
        self._residents.started(recovered.state.size_bytes)
        if recovered.missing is not None and session_id not in self._accepting:
            self._set_aside[session_id] = recovered.missing
            return SetAsideActor(recovered.state, recovered.missing)
        if recovered.failure is not None:
            self._unreplayable[session_id] = recovered.failure
            return UnreplayableActor(recovered.state, recovered.failure)
        self._unreplayable.pop(session_id, None)
        if self._set_aside.pop(session_id, None) is not None:
            self._projector.mark([session_id])  # what it had lost is there again, and its row is of before
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

    def _is_set_aside(self, session_id: str) -> bool:
        return (
            session_id in self._set_aside
            or session_id in self._unreplayable
            or self.quarantine.hold(session_id) is not None
        )

    async def _copy(self, session_id: str) -> SessionState:
        """For a snapshot. A session that is not in memory is read without bringing it there. One whose commit waits for
        room in the journal cannot answer before compaction has made some: it is read from what is stored."""
        if session_id in self._kernel.cells and not self._compactor.is_waited_for:
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

    def _left_memory(self, session_id: str, state: SessionState | None = None) -> None:
        if state is not None and state.header is not None:
            if self._projector.is_behind(session_id):
                # Else the catalog would read it back to write its row: where many come and go, that was most of the reading.
                path = self._snapshotter.path(session_id)
                self._records_to_list[session_id] = public_record(state, epoch=self.epoch, snapshot_path=path)
            if state.updated_at is not None and not state.timers:
                self._presence.rests(session_id, state.updated_at)
        self._snapshotter.forget(session_id)
        self._snapshotted(session_id, self._journal.heads().get(session_id, 0))

    def _snapshotted(self, session_id: str, seq: int) -> None:
        if self._mirror is not None and seq:
            self._mirror.snapshotted(session_id, seq)

    # -- for the parts ------------------------------------------------------------------------------------------------

    def _heard(self, session_id: str) -> None:
        self._presence.sign(session_id, self._kernel.now)

    def _read_clock(self) -> None:
        self._around.now = self._clock.now()

    def _epoch_mark(self) -> Record:
        return Record("", 0, 0, self.epoch, b"", RecordKind.EPOCH)

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

    async def _catch_up_catalog(self) -> None:
        rows = await self._catalog.heads()
        heads = self._journal.heads()
        self._projector.mark([id_ for id_, seq in heads.items() if rows.get(id_, 0) < seq])
        # Where the catalog is ahead, the journal has lost its end.
        self._behind.update({id_: seq for id_, seq in rows.items() if id_ in heads and heads[id_] < seq})

    async def _moved_record(self, session_id: str) -> dict[str, Any] | None:
        """The record of a session that was handed over; None for one that is active, or not there."""
        if session_id in self._journal.heads():
            return None
        row = await self._catalog.get(session_id)
        return decode_record(row.record) if row is not None and row.tier != ACTIVE else None

    async def _record_to_list(self, session_id: str) -> dict[str, Any] | None:
        """See `_stored_record`."""
        record = await self._stored_record(session_id)
        if record is not None and record["next_due_at"] is not None:
            self._timekeeper.note({session_id: record["next_due_at"]})
        return record

    async def _stored_record(self, session_id: str) -> dict[str, Any] | None:
        """For the catalog. A session that is not in memory is read without bringing it there. One that was handed over has
        its row from there."""
        left = self._records_to_list.pop(session_id, None)
        if not self._records_to_list:
            self._records_to_list = {}  # an emptied one keeps the room it once took
        head = self._journal.heads().get(session_id)
        if head is None:
            return None
        if session_id in self._kernel.cells:
            record: dict[str, Any] = await self._look(
                session_id, read_record(self.epoch, self._snapshotter.path(session_id))
            )
            if record["ended_at"] is not None:
                self._presence.forget(session_id)  # a late line of an ended session is no sign of life
            return record
        if left is not None and left["seq"] == head:
            return left
        recovered = await self._recovery.recover(session_id)
        if (
            session_id in self._journal.heads() and session_id not in self._kernel.cells
        ):  # else it knows better by now
            if recovered.missing is not None:
                self._set_aside[session_id] = recovered.missing
            else:
                self._set_aside.pop(session_id, None)
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
        self._set_aside.pop(session_id, None)
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
