"""What a session could not handle, as it is kept: which command, what it did, and how a person gets it back. Pure.

A command that crashes its session alone twice, or takes the whole process along twice, is set aside under a number of
its session. It stands in the journal as a mark until a person skips it, or it has taken effect after all. While it
stands, its sender is answered `Quarantined`.
"""

import traceback
from datetime import datetime
from typing import Any

import msgspec
from attrs import define, evolve, field, fields, frozen

from ..errors import Damaged
from ..ports import Identity, InFlight, Record, RecordKind
from .codec import command_digest
from .commands import Command
from .wire import read_command, read_create

ENTRIES_A_SESSION_MAX = 100
BYTES_A_SESSION_MAX = 1024 * 1024
ENTRIES_MAX = 10_000
BYTES_MAX = 32 * 1024 * 1024
# Each is written at the start after a kill, so there are as many as kills: a day's, of a machine that kills hourly.
ATTEMPTS_MAX = 24
TRACEBACK_CHARACTERS_MAX = 8_000  # its end, where the cause stands
TEXT_CHARACTERS_MAX = 500
SESSION_NUMBER = 0  # the session itself; messages are numbered from 1
UNWRITABLE = (TypeError, ValueError, msgspec.MsgspecError)  # what the encoder raises for no form of ours
_encode = msgspec.json.Encoder(order="deterministic").encode


@frozen(kw_only=True)
class Poison:
    """A message that is set aside.

    Attributes:
        at: when, aware UTC.
        attempts: how often it crashed its session alone, or took the process along.
        command: as it goes over the wire; None where it cannot be written as JSON, or is not known: a command that
            kills its process leaves its identity alone, until it is sent again.
        crash: the error, in a line.
        digest: of its body; None: not known.
        identity: see `identity_of`.
        killed: it took the process along.
        sent_as: under which command id it was sent again; `""`: under its own identity; None: it was not.
        text: the start of what cannot be written as JSON.
        traceback: the end of it; None where it took the process along.
    """

    at: datetime
    attempts: int
    command: dict[str, Any] | None
    crash: str
    digest: str | None
    identity: str
    killed: bool = False
    sent_as: str | None = None
    text: str | None = None
    traceback: str | None = None

    @property
    def identities(self) -> tuple[str, ...]:
        """Its own, and the one it was sent again under."""
        return (
            (self.identity, _identity(Identity.COMMAND_ID, 0, self.sent_as))
            if self.sent_as
            else (self.identity,)
        )


@frozen(kw_only=True)
class Hold:
    """A session that is set aside because it crashed in a loop."""

    at: datetime
    crash: str
    traceback: str


@frozen(kw_only=True)
class Attempt:
    """A command that was being handled when its process was killed, once."""

    at: datetime
    identity: str


def identity_of(command: Command) -> str:
    """Tells a command from the others of its session: by its id, by source and n, or by a digest of its body. All that
    cannot be written as JSON have one digest."""
    if command.source is not None:
        return _identity(Identity.SOURCE, command.n, command.source)
    if command.command_id is not None:
        return _identity(Identity.COMMAND_ID, 0, command.command_id)
    try:
        return _identity(Identity.DIGEST, 0, command_digest(command))
    except UNWRITABLE:
        return _identity(Identity.DIGEST, 0, "unwritable")


def digest_of(command: Command) -> str:
    """Tells one body from another under the same identity."""
    return command.digest or command_digest(command)


def identity_in_flight(left: InFlight) -> str:
    """The same, of what was found in the place that outlives the process."""
    return _identity(left.kind, left.n, left.name)


def _identity(kind: Identity, n: int, name: str) -> str:
    return f"{kind.value} {n} {name}"


def identity_document(identity: str) -> dict[str, Any]:
    """As it is shown: `command_id`, or `source` and `n`; nothing for a command that has neither."""
    kind, n, name = identity.split(" ", 2)
    if kind == "source":
        return {"n": int(n), "source": name}
    return {"command_id": name} if kind == "command_id" else {}


def command_document(command: Command) -> dict[str, Any]:
    """The command as it goes over the wire. Raises what the encoder raises where it cannot be written as JSON."""
    document: dict[str, Any] = {"type": command.type}
    if command.source is not None:
        document |= {"n": command.n, "source": command.source}
    elif command.command_id is not None:
        document["command_id"] = command.command_id
    settable = {attribute.name for attribute in fields(type(command.body)) if attribute.init}
    for name, value in msgspec.to_builtins(command.body).items():
        if name in settable and value is not None:
            document[name] = value
    _encode(document)
    return document


def command_of(document: dict[str, Any], digest: str | None = None) -> Command:
    """The command of a document, read as strictly as one from outside.

    Args:
        digest: what its sender's own sending is known by, where it has an id: that is then answered as the same command.

    Raises:
        InvalidCommand: it names every mistake.
    """
    if document.get("type") == "session.create":
        command = read_create({name: value for name, value in document.items() if name != "type"})
    else:
        command = read_command(document)
    if command.command_id is not None and digest is not None:
        command.digest = digest
    return command


def described(crash: BaseException) -> tuple[str, str]:
    """The error in a line, and the end of its traceback."""
    told = "".join(traceback.format_exception(crash))
    return one_line(crash), told[-TRACEBACK_CHARACTERS_MAX:]


def one_line(crash: BaseException) -> str:
    return f"{type(crash).__name__}: {crash}".replace("\n", " ")[:TEXT_CHARACTERS_MAX]


def poison_of(
    command: Command, crash: Exception, *, at: datetime, attempts: int, before: Poison | None = None
) -> Poison:
    """A command that crashed its session. `before`: how it stood already; then it is that one, once more."""
    error, told = described(crash)
    if before is not None:
        return evolve(before, at=at, attempts=before.attempts + attempts, crash=error, traceback=told)
    text, document = None, None
    try:
        document = command_document(command)
    except UNWRITABLE:
        text = repr(command)[:TEXT_CHARACTERS_MAX]
    return Poison(
        at=at,
        attempts=attempts,
        command=document,
        crash=error,
        digest=digest_of(command) if document is not None else None,
        identity=identity_of(command),
        text=text,
        traceback=told,
    )


def encode_mark(value: Poison | Hold | Attempt) -> bytes:
    """Canonical JSON."""
    return _encode(value)


def with_command(poison: Poison, command: Command) -> Poison:
    """The sender of a command that took its process along has sent it again: now its body is known. Raises as
    `command_document`."""
    return evolve(poison, command=command_document(command), digest=digest_of(command))


@define(eq=False)
class Account:
    """What of one session is set aside, by number."""

    poison: dict[int, Poison] = field(factory=dict)
    sizes: dict[int, int] = field(factory=dict)
    attempts: dict[int, Attempt] = field(factory=dict)
    hold: Hold | None = None

    @property
    def is_empty(self) -> bool:
        return not (self.poison or self.attempts or self.hold)

    def numbered(self, identity: str) -> int | None:
        """Under which number the command is set aside, by its own identity or by the one it was sent again under."""
        return next((number for number, one in self.poison.items() if identity in one.identities), None)

    def attempted(self, identity: str) -> int | None:
        """Under which number it stands that the command took a process along once."""
        return next((number for number, one in self.attempts.items() if one.identity == identity), None)


class Ledger:
    """What of all sessions is set aside, within the bounds. It says what the journal says: a mark is put here once it is
    committed.

    Attributes:
        forgiven: (session id, number) of attempts that stand in the journal and count no more.
    """

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.forgiven: list[tuple[str, int]] = []
        self._last_number = SESSION_NUMBER
        self._entries = self._bytes = 0

    def put(self, mark: Record) -> None:
        """A mark that is durable. Raises Damaged for one that this version cannot read."""
        number = mark.first_seq
        self._last_number = max(self._last_number, number)
        value = None if mark.kind is RecordKind.RELEASE else _decode(mark)
        account = self.accounts.setdefault(mark.session_id, Account())
        self._remove(account, number)
        match value:
            case Poison():
                account.poison[number] = value
                account.sizes[number] = len(mark.payload)
                self._entries += 1
                self._bytes += len(mark.payload)
            case Attempt():
                account.attempts[number] = value
            case Hold():
                account.hold = value
        self._drop_empty(mark.session_id)

    def forgive(self, session_id: str, number: int) -> None:
        """The command of this attempt was handled since, and well."""
        del self.accounts[session_id].attempts[number]
        self._drop_empty(session_id)
        self.forgiven.append((session_id, number))

    def _drop_empty(self, session_id: str) -> None:
        if self.accounts[session_id].is_empty:
            del self.accounts[session_id]

    def _remove(self, account: Account, number: int) -> None:
        if number == SESSION_NUMBER:
            account.hold = None
        account.attempts.pop(number, None)
        if account.poison.pop(number, None) is not None:
            self._entries -= 1
            self._bytes -= account.sizes.pop(number)

    def next_number(self) -> int:
        """One that nothing stands under in any session, nor did since the start."""
        self._last_number += 1
        return self._last_number

    def has_room(self, session_id: str, number: int, size_bytes: int) -> bool:
        """Whether a message of so many bytes may be set aside under this number."""
        account = self.accounts.get(session_id) or Account()
        replaced = account.sizes.get(number, 0)
        new = number not in account.poison
        return (
            len(account.poison) + new <= ENTRIES_A_SESSION_MAX
            and sum(account.sizes.values()) - replaced + size_bytes <= BYTES_A_SESSION_MAX
            and self._entries + new <= ENTRIES_MAX
            and self._bytes - replaced + size_bytes <= BYTES_MAX
        )

    def older_attempts(self, keep: int) -> list[tuple[str, int]]:
        """Session and number of all attempts but the newest `keep`."""
        found = [
            (attempt.at, number, session_id)
            for session_id, account in self.accounts.items()
            for number, attempt in account.attempts.items()
        ]
        return [(session_id, number) for _, number, session_id in sorted(found, reverse=True)[keep:]]

    @property
    def count(self) -> int:
        """How many messages are set aside."""
        return self._entries

    def hold(self, session_id: str) -> Hold | None:
        """Why the session is set aside; None: it is not."""
        account = self.accounts.get(session_id)
        return account.hold if account is not None else None

    def held(self) -> list[str]:
        """The sessions that are set aside."""
        return sorted(id_ for id_, account in self.accounts.items() if account.hold is not None)


_decode_poison = msgspec.json.Decoder(Poison).decode
_decode_hold = msgspec.json.Decoder(Hold).decode
_decode_attempt = msgspec.json.Decoder(Attempt).decode


def _decode(mark: Record) -> Poison | Hold | Attempt:
    try:
        if mark.kind is RecordKind.ATTEMPT:
            return _decode_attempt(mark.payload)
        if mark.first_seq == SESSION_NUMBER:
            return _decode_hold(mark.payload)
        return _decode_poison(mark.payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Damaged(f"a mark of {mark.session_id} cannot be read: {error}") from error
