"""Messages and sessions that are set aside: kept as marks of the journal, listed, skipped, edited, retried, released."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import anyio
import structlog
from attrs import evolve, frozen

from ..actors.errors import (
    Damaged,
    FieldError,
    InvalidCommand,
    NotQuarantined,
    NotResendable,
    Quarantined,
    StoreError,
)
from ..actors.kernel.actor import Kept
from ..actors.kernel.lifecycle import set_aside
from ..actors.kernel.scheduler import Kernel
from ..actors.ports import Clock, InFlight, Inflight, Journal, Record, RecordKind
from ..actors.session.actor import Done, LineCrashed, Read, ReplayFailure, SessionActor, Surroundings
from ..actors.session.commands import Command
from ..actors.session.guarded import GuardedActor, told
from ..actors.session.model import SessionState
from ..actors.session.poison import (
    ATTEMPTS_MAX,
    SESSION_NUMBER,
    Account,
    Attempt,
    Hold,
    Ledger,
    Poison,
    command_of,
    described,
    digest_of,
    encode_mark,
    identity_document,
    identity_in_flight,
    identity_of,
    one_line,
    poison_of,
)
from ..actors.session.wire import ID_CHARACTERS_MAX

log = structlog.get_logger("sojourn.quarantine")

TIDY_EVERY_S = 60.0
KILLED = "the process was killed while it was handled, twice"


@frozen(kw_only=True)
class QuarantineStatistics:
    """What is set aside now; `turned_away`: messages since the start for which there was no room (dead letters)."""

    messages: int
    sessions: int
    turned_away: int


class Quarantine:
    """What is set aside, of all sessions. It is the kernel's keeper (kernel.actor.Keeper) of session actors.

    Args:
        inflight: cleared when a command has crashed: the process goes on.
        send: asks a session to handle a command, durably; as Runtime.ask, but for sessions that are not there yet, too.
        look: asks a session with a read.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        inflight: Inflight,
        kernel: Callable[[], Kernel],
        clock: Clock,
        epoch: int,
        send: Callable[[str, Command], Awaitable[Done]],
        look: Callable[[str, Read], Awaitable[Any]],
    ) -> None:
        self._journal = journal
        self._inflight = inflight
        self._kernel = kernel
        self._clock = clock
        self._epoch = epoch
        self._send = send
        self._look = look
        self._ledger = Ledger()
        self._retrying: dict[tuple[str, int], str] = {}
        self._turned_away = 0

    # -- at the start ----------------------------------------------------------------------------------------------

    def open(self, marks: Iterable[Record], left: InFlight | None) -> list[Record]:
        """Take in what stands in the journal. Returns the marks that say which command the process before was killed
        in; once they are committed, `marked` is to be told of them."""
        for mark in marks:
            self._take(mark)
        told_of = []
        if left is not None and left.session_id:
            told_of.append(self._killed(left))
        for session_id, number in self._ledger.older_attempts(ATTEMPTS_MAX - len(told_of)):
            told_of.append(self._mark(session_id, number, RecordKind.RELEASE, b""))
        for session_id in self._ledger.held():
            self._kernel().hold(session_id)
        return told_of

    def _killed(self, left: InFlight) -> Record:
        session_id, identity = left.session_id, identity_in_flight(left)
        account = self._ledger.accounts.get(session_id) or Account()
        at = self._clock.now()
        number = account.numbered(identity)
        if number is not None:  # a person had it sent again
            poison = account.poison[number]
            poison = evolve(poison, at=at, attempts=poison.attempts + 1, killed=True)
        elif (number := account.attempted(identity)) is not None:
            poison = Poison(
                at=at, attempts=2, command=None, crash=KILLED, digest=None, identity=identity, killed=True
            )
        else:
            log.warning(
                "command.was_in_flight",
                session=session_id,
                command=identity_document(identity),
                remedy="none is needed; should the process be killed once more while it handles this command, it is set aside",
            )
            attempt = encode_mark(Attempt(at=at, identity=identity))
            return self._mark(session_id, self._ledger.next_number(), RecordKind.ATTEMPT, attempt)
        log.error(
            "command.killed_the_process",
            session=session_id,
            command=identity_document(identity),
            remedy=f"it is set aside: `sojourn quarantine show {session_id} {number}`",
        )
        return self._mark(session_id, number, RecordKind.QUARANTINE, encode_mark(poison))

    def marked(self, marks: Sequence[Record]) -> None:
        """These marks are durable."""
        for mark in marks:
            if mark.kind > RecordKind.EPOCH:
                self._take(mark)

    def _take(self, mark: Record) -> None:
        try:
            self._ledger.put(mark)
        except Damaged as error:
            log.error(
                "quarantine.unread",
                session=mark.session_id,
                number=mark.first_seq,
                error=str(error),
                remedy="open the folder with the newer Sojourn that wrote it; the mark stays",
            )

    async def run(self, started: Callable[[], None]) -> None:
        """A child of a supervisor; runs until cancelled."""
        started()
        while True:
            await anyio.sleep(TIDY_EVERY_S)
            await self.tidy()

    async def tidy(self) -> None:
        """Take attempts back that count no more. Where a store fails that is said, and they wait for the next time."""
        forgiven = self._ledger.forgiven[:]
        if not forgiven:
            return
        marks = [self._mark(session_id, number, RecordKind.RELEASE, b"") for session_id, number in forgiven]
        try:
            await self._journal.append(marks)
        except StoreError as error:
            log.warning("quarantine.not_tidied", error=str(error), remedy="none is needed: it is tried again")
        else:
            del self._ledger.forgiven[: len(forgiven)]

    def actor(self, state: SessionState, around: Surroundings) -> SessionActor:
        """The actor of a session, which looks at its commands where it must."""
        if state.session_id in self._ledger.accounts:
            return GuardedActor(state, around, self._ledger, self._retrying)
        return SessionActor(state, around)

    # -- the kernel's keeper ---------------------------------------------------------------------------------------

    def attempts(self, actor_id: str, message: Any, crash: Exception) -> int:
        """See Keeper."""
        self._inflight.page[0] = 0
        account, command = self._ledger.accounts.get(actor_id), _culprit(message, crash)
        if account is None or command is None:
            return 0
        return int(account.attempted(identity_of(command)) is not None)

    def poisonous(self, actor_id: str, message: Any, crash: Exception) -> Kept:
        """See Keeper."""
        command = _culprit(message, crash)
        cause = crash.__cause__ if isinstance(crash, LineCrashed) else crash
        assert isinstance(cause, Exception)
        error = one_line(cause)
        if command is not None:
            identity = identity_of(command)
            account = self._ledger.accounts.get(actor_id) or Account()
            number = account.numbered(identity) or account.attempted(identity)
            before = account.poison.get(number) if number is not None else None
            if number is None:
                number = self._ledger.next_number()
            poison = poison_of(command, cause, at=self._clock.now(), attempts=2, before=before)
            payload = encode_mark(poison)
            if self._ledger.has_room(actor_id, number, len(payload)):
                log.error(
                    "command.quarantined",
                    session=actor_id,
                    number=number,
                    error=error,
                    remedy=f"`sojourn quarantine show {actor_id} {number}`; then skip, edit or retry it",
                )
                return Kept(
                    error=Quarantined(told(actor_id, number, error)),
                    record=self._mark(actor_id, number, RecordKind.QUARANTINE, payload),
                    again=isinstance(crash, LineCrashed),
                )
            self._turned_away += 1
        log.error(
            "message.not_kept",
            session=actor_id,
            error=error,
            remedy="`sojourn quarantine ls` shows what is set aside; skip or retry some of it to make room",
        )
        return Kept(
            error=Quarantined(
                f"it crashed {actor_id} twice ({error}) and was dropped: there is no room to set it aside; the session goes on. "
                "`sojourn quarantine ls` shows what is; skip or retry some of it"
            )
        )

    def crash_loop(self, actor_id: str, crash: Exception) -> Kept:
        """See Keeper."""
        error, traceback = described(crash)
        log.error(
            "session.quarantined",
            session=actor_id,
            error=error,
            remedy=f"it can be read; `sojourn quarantine release {actor_id}` lets it start again",
        )
        hold = Hold(at=self._clock.now(), crash=error, traceback=traceback)
        return Kept(
            error=set_aside(self._kernel().cells[actor_id]),
            record=self._mark(actor_id, SESSION_NUMBER, RecordKind.QUARANTINE, encode_mark(hold)),
        )

    # -- looking ---------------------------------------------------------------------------------------------------

    def hold(self, session_id: str) -> Hold | None:
        """Why the session is set aside; None: it is not."""
        return self._ledger.hold(session_id)

    def listed(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """What is set aside, of one session or of all, by session and number; without commands and tracebacks."""
        accounts = self._ledger.accounts
        wanted = sorted(accounts) if session_id is None else [session_id]
        return [
            item
            for id_ in wanted
            if (account := accounts.get(id_)) is not None
            for item in documents(id_, account)
        ]

    def shown(self, session_id: str, number: int) -> dict[str, Any]:
        """A message that is set aside, with its command and traceback. Raises NotQuarantined."""
        return document(session_id, number, self._poison(session_id, number), whole=True)

    def statistics(self) -> QuarantineStatistics:
        """A frozen value."""
        return QuarantineStatistics(
            messages=self._ledger.count, sessions=len(self._ledger.held()), turned_away=self._turned_away
        )

    # -- what a person decides -------------------------------------------------------------------------------------

    async def skip(self, session_id: str, number: int) -> None:
        """Drop a message for good: sent again, it is a new one. Durable on return. Raises NotQuarantined."""
        self._poison(session_id, number)
        await self._forget(session_id, number)
        log.warning(
            "command.skipped",
            session=session_id,
            number=number,
            remedy="none is needed: a person asked for it",
        )

    async def retry(self, session_id: str, number: int) -> Done | None:
        """Send a message again as it was, and set it aside no longer once that took effect. A repetition of this changes
        nothing twice. None: its command is not known, and is handled once its sender sends it again.

        Raises:
            NotQuarantined: it is not set aside.
            NotResendable: it cannot be written as JSON.
            Quarantined: it crashed again, and stays where it is.
            Rejected, StoreError, DeadlineExceeded: as Runtime.ask; it stays where it is.
        """
        poison = self._poison(session_id, number)
        if poison.text is not None:
            raise NotResendable(
                f"message {number} of {session_id} cannot be written as JSON, so it was not kept whole; skip it"
            )
        if poison.command is None:
            await self._forget(session_id, number)
            return None
        return await self._resend(session_id, number, poison, poison.command)

    async def edit(self, session_id: str, number: int, fields: dict[str, Any]) -> Done:
        """Send a message with other fields in place of its own, under its own identity. Otherwise as `retry`.

        Args:
            fields: those of the command, all of them, without what it is identified by; `type` may be left out.

        Raises:
            InvalidCommand: every mistake is named; nothing was done.
        """
        poison = self._poison(session_id, number)
        if given := sorted(fields.keys() & {"command_id", "source", "n"}):
            detail = "the message keeps what it is identified by; leave this out"
            raise InvalidCommand(
                tuple(FieldError(code="invalid_field", pointer=f"/{name}", detail=detail) for name in given)
            )
        type_ = poison.command["type"] if poison.command is not None else None
        if type_ is not None and fields.get("type", type_) != type_:
            raise InvalidCommand(
                (
                    FieldError(
                        code="invalid_field",
                        pointer="/type",
                        detail=f"the message is a {type_}, and stays one; leave this out",
                    ),
                )
            )
        named = {"type": type_} if type_ is not None else {}
        return await self._resend(
            session_id, number, poison, named | fields | identity_document(poison.identity)
        )

    async def release(self, session_id: str) -> bool:
        """Let a session that is set aside start again. Durable on return; False where it was not."""
        if self.hold(session_id) is None:
            return False
        await self._forget(session_id, SESSION_NUMBER)
        self._kernel().release(session_id)
        log.warning("session.released", session=session_id, remedy="none is needed: a person asked for it")
        return True

    async def _resend(self, session_id: str, number: int, poison: Poison, fields: dict[str, Any]) -> Done:
        key = (session_id, number)
        if key in self._retrying:
            raise NotResendable(
                f"message {number} of {session_id} is being sent again just now; look again soon"
            )
        command_of(fields, poison.digest)  # a mistake is told before anything is kept
        self._retrying[key] = ""  # nobody else gets through meanwhile
        try:
            sent_as = poison.sent_as
            if sent_as is None:
                sent_as = await self._free_identity(session_id, poison)
                # Kept before it is sent: a repetition after a crash in between is then told as one.
                await self._append(
                    self._mark(
                        session_id,
                        number,
                        RecordKind.QUARANTINE,
                        encode_mark(evolve(poison, sent_as=sent_as)),
                    )
                )
            if sent_as:
                fields = {name: value for name, value in fields.items() if name not in ("source", "n")}
                fields["command_id"] = sent_as
            command = command_of(fields, poison.digest)
            self._retrying[key] = digest_of(command)
            done = await self._send(session_id, command)
        finally:
            del self._retrying[key]
        await self._forget(session_id, number)
        return done

    async def _free_identity(self, session_id: str, poison: Poison) -> str:
        """The command id to send it under; "" for its own identity. A command without one gets one, so that sending it
        again is safe, and so does one whose number its reporter has meanwhile given to another."""
        told_by = identity_document(poison.identity)
        if "command_id" in told_by:
            return ""
        if "source" in told_by:
            source, n = told_by["source"], told_by["n"]

            def last(state: SessionState) -> int:
                mark = state.sources.get(source)
                return mark.n if mark is not None else 0

            if await self._look(session_id, Read(last)) < n:
                return ""
            return f"quarantined {n} {source}"[:ID_CHARACTERS_MAX]
        return f"quarantined {poison.at.isoformat()}"

    async def _forget(self, session_id: str, number: int) -> None:
        await self._append(self._mark(session_id, number, RecordKind.RELEASE, b""))

    async def _append(self, mark: Record) -> None:
        with anyio.CancelScope(shield=True):  # what is in the journal's hands is finished, and taken note of
            await self._journal.append([mark])
            self._take(mark)

    def _poison(self, session_id: str, number: int) -> Poison:
        account = self._ledger.accounts.get(session_id)
        poison = account.poison.get(number) if account is not None else None
        if poison is None:
            raise NotQuarantined(session_id, number)
        return poison

    def _mark(self, session_id: str, number: int, kind: RecordKind, payload: bytes) -> Record:
        return Record(session_id, number, 0, self._epoch, payload, kind)


def documents(session_id: str, account: Account) -> list[dict[str, Any]]:
    """What of a session is set aside, as it is listed: the session itself first, as number 0."""
    found = []
    if (hold := account.hold) is not None:
        found.append(hold_document(session_id, hold))
    for number in sorted(account.poison):
        found.append(document(session_id, number, account.poison[number]))
    return found


def hold_document(session_id: str, hold: Hold) -> dict[str, Any]:
    """A session that crashes in a loop, as it is listed."""
    return {
        "at": hold.at,
        "crash": hold.crash,
        "kind": "session",
        "number": SESSION_NUMBER,
        "session_id": session_id,
    }


def quarantined_document(hold: Hold | None, failure: ReplayFailure | None) -> dict[str, Any] | None:
    """`quarantined` of a session's public record: why the session itself is set aside; None: it is not."""
    if hold is not None:
        return {"at": hold.at, "crash": hold.crash, "reason": "crash_loop", "seq": None}
    if failure is not None:
        return {"at": None, "crash": failure.error, "reason": "replay", "seq": failure.seq}
    return None


def document(session_id: str, number: int, poison: Poison, *, whole: bool = False) -> dict[str, Any]:
    """A message that is set aside, as it is listed, or with all that is known of it."""
    shown = {
        "at": poison.at,
        "attempts": poison.attempts,
        "crash": poison.crash,
        "kind": "message",
        "killed": poison.killed,
        "number": number,
        "session_id": session_id,
        "type": poison.command["type"] if poison.command is not None else None,
        **identity_document(poison.identity),
    }
    if whole:
        shown |= {"command": poison.command, "text": poison.text, "traceback": poison.traceback}
    return shown


def _culprit(message: Any, crash: Exception) -> Command | None:
    if isinstance(crash, LineCrashed):
        return crash.command
    return message if isinstance(message, Command) else None
