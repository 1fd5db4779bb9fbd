"""The truth that everything is held against: the events whose append was carried out, and what follows from them.

Nothing here reads back what the runtime stored; so whatever it stores, lists, streams or answers is compared with it at
the moment it comes. `Violation.invariant` is a name of ARCHITECTURE.md's table.
"""

from collections.abc import Iterable, Sequence
from operator import ge
from typing import TYPE_CHECKING, Any

import anyio
from attrs import define, field

from sojourn.actors.errors import Damaged
from sojourn.actors.ports import TIERS, CatalogRow, MirrorUpdate, Record, RecordKind
from sojourn.actors.session.codec import decode_event, decode_snapshot, encode_snapshot, public_state
from sojourn.actors.session.commands import ABANDONED, TIMER_FIRED, AppendLog, Event, SourceCause
from sojourn.actors.session.core import apply
from sojourn.actors.session.documents import all_documents
from sojourn.actors.session.model import Limits, SessionState
from sojourn.actors.session.record import decode_record, public_record
from sojourn.actors.session.timers import tick
from sojourn.runtime.layout import manifest_name, session_folder, snapshot_seq
from sojourn.runtime.live import Line
from sojourn.runtime.manifest import decode_manifest, sha256_of
from sojourn.runtime.segments import decode_segment, parse_name, unpack
from sojourn.runtime.stores.memory import MemoryMirror

from .rot import RottingObjects, session_of

if TYPE_CHECKING:
    from .disk import Disk, Mount

STATES_HELD = 3
OBJECT_BYTES_MAX = 1 << 26

Cause = tuple[str, str, int]


class Violation(AssertionError):
    """An invariant does not hold."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant


@define(eq=False)
class Truth:
    """One session as it is durable."""

    session_id: str
    lines: list[bytes] = field(factory=list)
    epochs: list[int] = field(factory=list)
    events: list[Event] = field(factory=list)
    causes: dict[Cause, int] = field(factory=dict)
    texts: dict[str, int] = field(factory=dict)
    tier: str = TIERS[0]
    mirrored_seq: int = 0
    known_seq: int = 0  # up to which somebody was told or shown that it is durable
    alive_at: float = 0.0  # when the last command was sent that made an event, on the virtual clock
    # The same of commands that were answered before their commit, by the seq of their event: one that was queued behind
    # the end of a silent session comes after it.
    early: dict[int, float] = field(factory=dict)
    rested: set[int] = field(
        factory=set
    )  # seqs of snapshots that were its last event's when they were written
    states: list[SessionState] = field(factory=list)
    sound: dict[tuple[str, bytes], tuple[int, int] | None] = field(factory=dict)

    @property
    def head(self) -> int:
        return len(self.lines)

    def state_at(self, seq: int, limits: Limits) -> SessionState:
        """The fold of the events up to `seq`. It moves with the next call: look and forget."""
        below = [state for state in self.states if state.seq <= seq]
        if below:
            state = max(below, key=lambda state: state.seq)
        else:
            state = SessionState(session_id=self.session_id)
            self.states = [*self.states[-STATES_HELD + 1 :], state]
        for event in self.events[state.seq : seq]:
            apply(state, event, limits)
        return state


@define(eq=False)
class Oracle:
    """`failed` is set with the first violation, so that it ends the seed wherever it was found."""

    limits: Limits
    truths: dict[str, Truth] = field(factory=dict)
    epoch: int = 0
    violations: list[Violation] = field(factory=list)
    failed: anyio.Event | None = None

    def of(self, session_id: str) -> Truth:
        truth = self.truths.get(session_id)
        if truth is None:
            truth = self.truths[session_id] = Truth(session_id)
        return truth

    def must(self, holds: bool, invariant: str, text: str) -> None:
        """Note a violation. Raises nothing: it may be called from within the runtime."""
        if not holds:
            self.violations.append(Violation(invariant, text))
            if self.failed is not None:
                self.failed.set()

    # -- what the stores were given ----------------------------------------------------------------------------------

    def appended(self, records: Sequence[Record], mount: "Mount") -> None:
        """The journal holds them now."""
        for record in records:
            if mount.epoch is None:
                self.must(
                    record.epoch > self.epoch,
                    "I4",
                    f"a process began with epoch {record.epoch} after {self.epoch}",
                )
                mount.epoch = record.epoch
            self.must(
                record.epoch >= self.epoch, "I3", f"{record.epoch} writes, and {self.epoch} owns the journal"
            )
            self.epoch = max(self.epoch, record.epoch)
            self.must(record.epoch == mount.epoch, "I3", f"epoch {record.epoch} was written by {mount.epoch}")
            if record.kind is RecordKind.EVENTS:
                self._appended(record, mount)

    def alive(self, session_id: str, sent_at: float, seq: int) -> None:
        """A command of this time made the event `seq`, which may not have been appended yet."""
        truth = self.of(session_id)
        if seq > truth.head:
            truth.early[seq] = sent_at
        else:
            truth.alive_at = max(truth.alive_at, sent_at)

    def _appended(self, record: Record, mount: "Mount") -> None:
        truth = self.of(record.session_id)
        lines = record.payload.splitlines()
        self.must(
            record.first_seq == truth.head + 1 and record.count == len(lines),
            "I2",
            f"{record.session_id}: seq {record.first_seq} was appended after {truth.head}",
        )
        for line in lines:
            event = decode_event(line)
            if event.type == TIMER_FIRED.event:
                self._fired(truth, event)
            elif event.type == ABANDONED.event:
                silent_s = anyio.current_time() - max(truth.alive_at, mount.opened_at)
                self.must(
                    silent_s >= mount.disk.profile.settings.abandon_after_s,
                    "I22",
                    f"{truth.session_id} was abandoned after {silent_s:g} s of silence",
                )
            truth.lines.append(line)
            truth.epochs.append(record.epoch)
            truth.events.append(event)
            truth.alive_at = max(truth.alive_at, truth.early.pop(event.seq, 0.0))
            cause = cause_of(event)
            if cause is not None:
                self.must(
                    cause not in truth.causes,
                    "I17",
                    f"{record.session_id}: {cause} took effect twice: {truth.causes.get(cause)}, {event.seq}",
                )
                truth.causes[cause] = event.seq
                if cause[0] == "source":
                    before = ("source", cause[1], cause[2] - 1)
                    in_order = cause[2] == 1 or before in truth.causes
                    self.must(in_order, "I1", f"{record.session_id}: {cause} took effect before {before}")
            if isinstance(event.data, AppendLog):
                self.must(
                    event.data.text not in truth.texts,
                    "I17",
                    f"{record.session_id}: {event.data.text!r} twice",
                )
                truth.texts[event.data.text] = event.seq

    def _fired(self, truth: Truth, event: Event) -> None:
        """A timer fires once it is due, once for each moment that it was due."""
        due = tick(truth.state_at(truth.head, self.limits), event.at)
        self.must(
            bool(due) and due[0].data == event.data,
            "I17",
            f"{truth.session_id}: {event.data} was told at {event.at}, and due was {due[:1]}",
        )

    def releases(self, disk: "Disk", session_id: str, seq: int) -> None:
        """The journal is told to let these events go."""
        head = disk.journal.heads().get(session_id, 0)
        self.must(seq <= head, "I9", f"{session_id} is released up to {seq}, beyond its head {head}")
        if seq <= disk.journal.released(session_id):
            return
        snapshots = sorted(snapshot_seq(name) or 0 for name in objects_of(disk.recent, session_id))
        *_, older, newest = [0, 0, *snapshots]
        # One that has moved on since compaction looked at it is not at its newest snapshot any more.
        floor = newest if newest in self.of(session_id).rested else older
        self.must(
            seq <= floor,
            "I20",
            f"{session_id} is released up to {seq} of {head}, and has snapshots of {older} and {newest}: a newest one that "
            "turns out damaged would cost what the journal does not hold",
        )

    def goes_on(self, name: str) -> bool:
        """Whether the session of this object has not ended."""
        truth = self.of(name.split("/")[2])
        status = truth.state_at(truth.head, self.limits).status
        return status is not None and not status.ended

    def belongs_here(self, disk: "Disk", name: str) -> None:
        """An object is to be written with the recent ones."""
        session_id = session_of(name)
        archived = self.of(session_id).tier == TIERS[2] and session_id not in disk.journal.heads()
        self.must(not archived, "I11", f"{name} is written, and the session is archived")

    def writes(self, name: str) -> None:
        """An object is being written, well or not."""
        truth = self.of(name.split("/")[2])
        if snapshot_seq(name) == truth.head:
            truth.rested.add(truth.head)

    def stored(self, store: str, name: str, data: bytes) -> None:
        """An object stands there."""
        session_id = name.split("/")[2]
        truth = self.of(session_id)
        seq = snapshot_seq(name)
        if seq is not None:
            plain = unpack(data, OBJECT_BYTES_MAX) if name.endswith(".zst") else data
            self.must(seq <= truth.head, "I20", f"{name} is ahead of the journal, which ends at {truth.head}")
            if seq <= truth.head:
                epoch = decode_snapshot(plain).epoch
                state = truth.state_at(seq, self.limits)
                self.must(
                    plain == encode_snapshot(state, epoch), "I5", f"{name} is not the fold of its events"
                )
        elif parse_name(name) is not None:
            self.must(self._segment(truth, name, data) is not None, "I5", f"{name} is not what happened")

    def _segment(self, truth: Truth, name: str, data: bytes) -> tuple[int, int] | None:
        """Its first and last seq, where it can be read and holds what happened."""
        key = (name, data)
        if key not in truth.sound:
            truth.sound[key] = self._read_segment(truth, name, data)
        return truth.sound[key]

    def _read_segment(self, truth: Truth, name: str, data: bytes) -> tuple[int, int] | None:
        segment = parse_name(name)
        if segment is None:
            return None
        first_seq, last_seq = segment.first_seq, segment.last_seq
        try:
            records = decode_segment(
                data, session_id=truth.session_id, first_seq=first_seq, last_seq=last_seq
            )
        except Damaged:
            return None
        lines = [line for record in records for line in record.payload.splitlines()]
        epochs = [record.epoch for record in records for _ in range(record.count)]
        # What was filled in from the mirror carries the epoch that the mirror stood at, which is not below its own.
        written = truth.epochs[first_seq - 1 : last_seq]
        holds = lines == truth.lines[first_seq - 1 : last_seq] and len(epochs) == len(written)
        return (first_seq, last_seq) if holds and all(map(ge, epochs, written)) else None

    def copies_left(self, disk: "Disk", session_ids: Iterable[str]) -> None:
        """Something was let go of: every event must still stand somewhere, where it can be read."""
        for session_id in session_ids:
            truth = self.of(session_id)
            kept = set[int]()
            for record in disk.journal._sessions.get(session_id, ()):
                kept.update(range(record.first_seq, record.last_seq + 1))
            for objects in (disk.recent, disk.archive):
                for name, data in objects_of(objects, session_id).items():
                    span = self._segment(truth, name, data)
                    if span is not None:
                        kept.update(range(span[0], span[1] + 1))
            lost = sorted(set(range(1, truth.head + 1)) - kept)
            self.must(not lost, "I9", f"{session_id}: no copy is left of events {lost[:5]}")

    def deleted(self, disk: "Disk", name: str) -> None:
        """An object is gone."""
        self.copies_left(disk, [name.split("/")[2]])

    def mirrors(self, update: MirrorUpdate) -> None:
        """The mirror is sent this."""
        truth = self.of(update.session_id)
        durable = update.last_seq <= truth.head
        self.must(
            durable, "I7", f"{truth.session_id} is mirrored at seq {update.last_seq}, {truth.head} is durable"
        )
        first_seq = update.last_seq - len(update.events) + 1
        happened = truth.lines[first_seq - 1 : update.last_seq]
        self.must(
            not durable or list(update.events) == happened,
            "I5",
            f"{truth.session_id}: other events than those that happened are mirrored up to {update.last_seq}",
        )

    def mirrored(self, update: MirrorUpdate) -> None:
        """The mirror has acknowledged it."""
        truth = self.of(update.session_id)
        truth.mirrored_seq = max(truth.mirrored_seq, update.last_seq)

    def mirror_is_level(self, mirror: MemoryMirror) -> None:
        """Each active session stands there as it is, and no other does."""
        for session_id, truth in self.truths.items():
            stands = mirror._sessions.get(session_id)
            if truth.tier != TIERS[0]:
                self.must(stands is None, "I11", f"{session_id} is {truth.tier} and is still mirrored")
            elif not truth.head:
                self.must(stands is None, "I7", f"{session_id} was never created, and is mirrored")
            elif stands is None or stands.seq != truth.head:
                at = stands.seq if stands is not None else None
                self.must(False, "I11", f"{session_id} is mirrored at {at}, {truth.head} is durable")
            else:
                expected = dict(all_documents(truth.state_at(truth.head, self.limits)))
                self.must(
                    stands.documents == expected,
                    "I5",
                    f"{session_id}: the mirrored documents are not its state",
                )

    def listed(self, row: CatalogRow, disk: "Disk") -> None:
        """The catalog has this row."""
        truth = self.of(row.session_id)
        self.must(row.seq <= truth.head, "I7", f"{row.session_id} is listed at seq {row.seq} of {truth.head}")
        self.must(
            TIERS.index(row.tier) >= TIERS.index(truth.tier),
            "I8",
            f"{row.session_id} moved from {truth.tier} back to {row.tier}",
        )
        truth.tier = row.tier
        if row.seq > truth.head:
            return
        expected = public_record(truth.state_at(row.seq, self.limits), epoch=row.epoch)
        record = decode_record(row.record)
        for name in ("status", "outcome", "seq", "logs", "results", "sealed_at", "ended_at", "updated_at"):
            self.must(
                record[name] == expected[name],
                "I5",
                f"{row.session_id} is listed with {name} {record[name]} at {row.seq}, and has {expected[name]}",
            )
        if row.tier != TIERS[0]:
            objects = disk.recent if row.tier == TIERS[1] else disk.archive
            self.must(
                self.complete(objects, row.session_id),
                "I11",
                f"{row.session_id} is listed as {row.tier} and is not complete there",
            )

    def complete(self, objects: RottingObjects, session_id: str) -> bool:
        """Whether a manifest stands there, and all that it lists."""
        found = objects_of(objects, session_id)
        data = found.get(manifest_name(session_id))
        if data is None:
            return False
        manifest = decode_manifest(data, session_id)
        return manifest.seq == self.of(session_id).head and all(
            entry.name in found and sha256_of(found[entry.name]) == entry.sha256 for entry in manifest.objects
        )

    # -- what somebody was shown ---------------------------------------------------------------------------------------

    def known(self, session_id: str, seq: int) -> None:
        """Somebody knows that this much is durable: nobody is shown less from here on."""
        truth = self.of(session_id)
        truth.known_seq = max(truth.known_seq, min(seq, truth.head))

    def shown(self, session_id: str, line: Line) -> None:
        """A reader was given an event."""
        self.known(session_id, line.seq)
        truth = self.of(session_id)
        self.must(
            line.seq <= truth.head, "I7", f"{session_id}: event {line.seq} was shown before it was durable"
        )
        if line.seq <= truth.head:
            at = line.seq - 1
            self.must(
                line.line == truth.lines[at] and line.epoch >= truth.epochs[at],  # see `_read_segment`
                "I6",
                f"{session_id}: another event {line.seq} was shown than the one that happened",
            )

    def shown_state(self, session_id: str, seq: int, state: bytes) -> None:
        """A reader was given a state."""
        self.known(session_id, seq)
        truth = self.of(session_id)
        self.must(
            seq <= truth.head, "I7", f"{session_id}: a state of seq {seq} was shown, {truth.head} is durable"
        )
        if seq <= truth.head:
            self.must(
                state == public_state(truth.state_at(seq, self.limits)),
                "I5",
                f"{session_id}: the state shown at {seq} is not the fold of its events",
            )

    def shown_tier(self, session_id: str, record: dict[str, Any]) -> None:
        """A reader was given a public record."""
        self.known(session_id, record["seq"])
        truth = self.of(session_id)
        self.must(
            record["seq"] <= truth.head,
            "I7",
            f"{session_id}: a record of seq {record['seq']} was shown, {truth.head} is durable",
        )
        self.must(
            TIERS.index(record["tier"]) <= TIERS.index(truth.tier),
            "I8",
            f"{session_id} is shown as {record['tier']} and is {truth.tier}",
        )


def cause_of(event: Event) -> Cause | None:
    """Which command made it happen; None for one without an id."""
    cause = event.cause
    if cause is None:
        return None
    if isinstance(cause, SourceCause):
        return ("source", cause.source, cause.n)
    return ("id", cause.command_id, 0)


def objects_of(objects: RottingObjects, session_id: str) -> dict[str, bytes]:
    """All that stands there of a session, as it was written."""
    folder = session_folder(session_id) + "/"
    return {name: objects.as_written(name) for name in objects._objects if name.startswith(folder)}
