"""The session actor: owns one session's state, decides and applies, and hands each slot's events over as one record."""

from collections.abc import Callable, MutableSequence, Sequence
from datetime import datetime
from typing import Any

from attrs import define, field, frozen

from ..errors import CallerError, SessionQuarantined, SetAside, StoreError
from ..ports import Record
from .codec import command_digest, encode_events, public_state
from .commands import HISTORY_LOST, TIMER_FIRED, Command, Event, HistoryLost
from .core import abandon, answer_seq, apply, decide
from .documents import apply_touching, documents_named
from .model import Limits, SessionState, SourceMark
from .record import public_record
from .timers import next_due_at, tick


@define(kw_only=True)
class Surroundings:
    """What all sessions of a runtime share. `now` is the wall clock (aware UTC), read once a step of the kernel: all events
    of a step share their time, and a reading a turn would cost a tenth of it. `note` and `page` are those of
    ports.Inflight. `mirrored`: records carry the documents that their events touched. `due`
    gathers which sessions have timers, and when the next one is due, for whoever wakes them: a hint, which may stand there
    before its slot is committed. `heard` is told of a session that has not ended in the turn of a command to it: what is not
    committed yet is a sign of life already."""

    due: dict[str, datetime] = field(factory=dict)
    epoch: int
    heard: Callable[[str], object] = lambda session_id: None
    limits: Limits
    now: datetime
    note: Callable[[bytes, int, bytes], object] = lambda session_id, n, name: None
    page: MutableSequence[int] = field(factory=lambda: bytearray(1))
    mirrored: bool = False


@define
class Done:
    """A command took effect: its last event. `duplicate`: it had before, and this sending changed nothing."""

    seq: int
    duplicate: bool = False


@frozen
class Batch:
    """Commands handled in one turn and committed as one. A CallerError among them is a line that could not be read; it is
    answered in its place."""

    commands: Sequence[Command | CallerError]


@frozen
class Read:
    """Calls a function with the state, in a turn of its own: it sees nothing that is not durable when its answer leaves.
    The function must not change or keep the state."""

    look: Callable[[SessionState], Any]


@frozen
class AcceptLoss:
    """A person goes on without these events; asked of a session that was recovered with them left out."""

    first_seq: int
    last_seq: int


@frozen
class GiveUp:
    """Nobody was heard of since the session's event `seq`, and `reason` says for how long. It is answered by Done, or by None
    where something has happened since (what was queued before goes first), or that event is not from `before`."""

    seq: int
    reason: str
    before: datetime


@frozen
class Tick:
    """A moment has come: the session's timers that are due fire. Answered by Ticked, also where nothing is due."""


@define
class Ticked:
    """How many timers fired, whether one of them ended the session, and when the next one is due (None: none will be)."""

    fired: int
    ended: bool
    next_due_at: datetime | None


class LineCrashed(Exception):
    """A command of a batch crashed its session: `command` is which, and the crash is the cause of this."""

    def __init__(self, command: Command) -> None:
        super().__init__(command.type)
        self.command = command


@frozen
class ReplayFailure:
    """Event `seq` of a session cannot be applied: `error` says why."""

    seq: int
    error: str


class SessionActor:
    """See kernel.actor.Actor."""

    __slots__ = ("_around", "_events", "_name", "_touched", "state")

    def __init__(self, state: SessionState, around: Surroundings) -> None:
        self.state = state
        self._name = state.session_id.encode()
        self._around = around
        self._events: list[Event] = []
        self._touched: set[str] | None = set() if around.mirrored else None

    def receive(self, message: Command | Batch | Read | AcceptLoss | GiveUp | Tick) -> Any:
        """Answers Done to a command, a list of Done or CallerError to a batch, what `look` returns to a read."""
        if type(message) is Command:
            state, around = self.state, self._around
            if message.source is not None:
                around.note(self._name, message.n, message.source.encode())
            elif message.command_id is not None:
                around.note(self._name, 0, message.command_id.encode())
            else:
                around.note(self._name, -1, command_digest(message).encode())
            limits = around.limits
            events = decide(state, message, around.now, limits)
            header = state.header
            if header is None or header.ended_at is None:
                around.heard(state.session_id)
            if not events:
                return Done(answer_seq(state, message), True)
            touched = self._touched
            for event in events:
                if touched is None:
                    apply(state, event, limits)
                else:
                    apply_touching(state, event, limits, touched, apply)
                self._events.append(event)
            return Done(state.seq)
        if isinstance(message, Batch):
            return [self._judge(command) for command in message.commands]
        if isinstance(message, AcceptLoss):
            return self._forgo(message)
        if isinstance(message, GiveUp):
            return self._end(message)
        if isinstance(message, Tick):
            return self._tick()
        assert isinstance(message, Read)
        return message.look(self.state)

    def _forgo(self, message: AcceptLoss) -> Done:
        state, around = self.state, self._around
        body = HistoryLost(first_seq=message.first_seq, last_seq=message.last_seq)
        at = around.now if state.updated_at is None else max(around.now, state.updated_at)
        return self._happens(Event(at, None, body, state.seq + 1, HISTORY_LOST.event))

    def _end(self, message: GiveUp) -> Done | None:
        event = abandon(self.state, message.seq, message.reason, self._around.now, message.before)
        return self._happens(event) if event is not None else None

    def _happens(self, event: Event) -> Done:
        state, limits = self.state, self._around.limits
        if self._touched is None:
            apply(state, event, limits)
        else:
            apply_touching(state, event, limits, self._touched, apply)
        self._events.append(event)
        return Done(state.seq)

    def _tick(self) -> Ticked:
        state, around = self.state, self._around
        events = tick(state, around.now)
        for event in events:
            self._happens(event)
        fired = sum(event.type == TIMER_FIRED.event for event in events)
        return Ticked(fired, len(events) > fired, next_due_at(state))

    def _judge(self, command: Command | CallerError) -> Any:
        if isinstance(command, CallerError):
            return command
        try:
            return self.receive(command)
        except CallerError as error:
            return error
        except StoreError:
            raise
        except Exception as crash:
            raise LineCrashed(command) from crash

    def close_slot(self) -> Record | None:
        """The events of the slot's turns, as one record."""
        events = self._events
        around = self._around
        if not events:
            around.page[0] = 0
            return None
        state, count, touched = self.state, len(events), self._touched
        if state.timers and (due_at := next_due_at(state)) is not None:
            around.due[state.session_id] = due_at
        record = Record(state.session_id, state.seq - count + 1, count, around.epoch, encode_events(events))
        events.clear()
        if touched is not None:
            record.documents = documents_named(state, touched)
            touched.clear()
        around.page[0] = 0
        return record


class SetAsideActor:
    """A session with a hole in its history: it is read, and takes nothing until a person accepts the loss."""

    __slots__ = ("missing", "state")

    def __init__(self, state: SessionState, missing: tuple[int, int]) -> None:
        self.state = state
        self.missing = missing

    def receive(self, message: Command | Batch | Read | AcceptLoss | GiveUp | Tick) -> Any:
        """Answers a read; raises SetAside for the rest."""
        if isinstance(message, Read):
            return message.look(self.state)
        raise SetAside(self.state.session_id, *self.missing)

    def close_slot(self) -> None:
        """There is never anything to keep."""


class UnreplayableActor:
    """A session with an event that cannot be applied: it is read as it was before that, and takes nothing."""

    __slots__ = ("_failure", "state")

    def __init__(self, state: SessionState, failure: ReplayFailure) -> None:
        self.state = state
        self._failure = failure

    def receive(self, message: Command | Batch | Read | AcceptLoss | GiveUp | Tick) -> Any:
        """Answers a read; raises SessionQuarantined for the rest."""
        if isinstance(message, Read):
            return message.look(self.state)
        raise SessionQuarantined(self.state.session_id, self._failure.seq, self._failure.error)

    def close_slot(self) -> None:
        """There is never anything to keep."""


def read_record(epoch: int, snapshot_path: str | None) -> Read:
    """A read that answers the public record."""
    return Read(lambda state: public_record(state, epoch=epoch, snapshot_path=snapshot_path))


def read_state() -> Read:
    """A read that answers (seq, canonical JSON of the state)."""
    return Read(lambda state: (state.seq, public_state(state)))


def read_both(epoch: int, snapshot_path: str | None) -> Read:
    """A read that answers (public record, seq, canonical JSON of the state), all of one moment."""
    record = read_record(epoch, snapshot_path)
    return Read(lambda state: (record.look(state), state.seq, public_state(state)))


def read_copy() -> Read:
    """A read that answers a copy for a snapshot. Documents are never changed, only replaced, so the maps are copied and
    the documents shared: 2 ms at 100,000 of them. The marks of sources are changed, and there are few: they are copied."""
    return Read(copy_state)


def copy_state(state: SessionState) -> SessionState:
    """A state that stays as it is while the original goes on."""
    return SessionState(
        active_clock=state.active_clock,
        commands=state.commands.copy(),
        counters=state.counters.copy(),
        header=state.header,
        losses=state.losses,
        progress=state.progress,
        resources=state.resources,
        results=state.results.copy(),
        seq=state.seq,
        session_id=state.session_id,
        size_bytes=state.size_bytes,
        sources={source: SourceMark(mark.n, mark.seq) for source, mark in state.sources.items()},
        timers=state.timers.copy(),
        updated_at=state.updated_at,
    )
