"""Every error of Sojourn, in families by who is at fault. HTTP codes stand in `http/problems.py`, nowhere else.

The docstring's first paragraph is the default message. Attributes carry ids and numbers, so that nobody parses text.
"""

from collections.abc import Sequence
from datetime import datetime

from attrs import frozen


class SojournError(Exception):
    """Something went wrong in Sojourn."""

    code = "internal"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or " ".join((type(self).__doc__ or "").split("\n\n")[0].split()))


# -- the caller is at fault: answered, and the actor lives ---------------------------------------------------------


@frozen(kw_only=True)
class FieldError:
    """One mistake in the input: `pointer` is its path (RFC 6901), `code` one of docs/protocol.md's, `detail` cause and fix."""

    code: str
    detail: str
    pointer: str


class CallerError(SojournError):
    """The request cannot be taken as it is."""

    code = "invalid_field"
    pointer: str | None = None


class InvalidCommand(CallerError):
    """The command cannot be read. Raised before anything is done; `errors` names every field that is wrong."""

    def __init__(self, errors: tuple[FieldError, ...]) -> None:
        super().__init__("; ".join(f"{error.pointer or '/'}: {error.detail}" for error in errors))
        self.errors = errors
        self.code = errors[0].code
        self.pointer = errors[0].pointer


class TooLarge(CallerError):
    """Something is over its limit. `limit` names the limit."""

    code = "too_large"

    def __init__(self, what: str, limit: int, unit: str = "bytes") -> None:
        super().__init__(f"{what} is over its limit of {limit:,} {unit}; send less at once")
        self.limit = limit


class InvalidSettings(CallerError):
    """The settings cannot be used as they are. Raised before anything is started.

    `problems` says of each mistake which setting it is, what it holds, where that comes from and what it may hold."""

    code = "invalid_settings"

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class Rejected(CallerError):
    """The session's state forbids the command. Raised by `decide`; nothing has changed."""

    code = "rejected"


class NoSuchSession(Rejected):
    """There is no session of this id."""

    code = "no_such_session"

    def __init__(self, session_id: str) -> None:
        super().__init__(f"there is no session {session_id!r}; `sojourn ls` shows those there are")
        self.session_id = session_id


class IllegalInStatus(Rejected):
    """The command is not legal in the session's status."""

    code = "illegal_in_status"
    pointer = "/type"

    def __init__(self, command_type: str, status: str, legal: tuple[str, ...]) -> None:
        super().__init__(
            f"{command_type} is not legal while the session is {status}; legal now: {', '.join(legal) or 'nothing'}"
        )
        self.status = status


class SessionSealed(Rejected):
    """The session is sealed: nothing is added to it any more. `sealed_at` says since when."""

    code = "sealed"
    pointer = "/type"

    def __init__(self, session_id: str, sealed_at: datetime) -> None:
        super().__init__(
            f"session {session_id} is sealed since {sealed_at.isoformat()}; record a new session"
        )
        self.sealed_at = sealed_at


class NotSealed(Rejected):
    """The session is not sealed yet, and only then may its facts change."""

    code = "not_sealed"

    def __init__(self, session_id: str, status: str) -> None:
        super().__init__(
            f"session {session_id} is {status} and not sealed, and its title and tags can be set once it is; end it, and send "
            "session.seal"
        )


class AlreadyExists(Rejected):
    """A session of this id exists already."""

    code = "already_exists"


class IdempotencyMismatch(Rejected):
    """This command id was used before with another body; a new command needs a new id."""

    code = "idempotency_mismatch"
    pointer = "/command_id"


class OutOfOrder(Rejected):
    """A source's number is not the next one. `expected` is."""

    code = "out_of_order"
    pointer = "/n"

    def __init__(self, source: str, n: int, expected: int) -> None:
        super().__init__(f"source {source!r} sent n={n}, expected n={expected}; send what lies between first")
        self.expected = expected


class LimitReached(Rejected):
    """A limit of this session is reached; the session goes on without what would exceed it."""

    code = "limit_reached"

    def __init__(self, limit: str, at: int) -> None:
        super().__init__(
            f"the session's limit {limit} = {at:,} is reached; what would exceed it is refused, the rest goes on"
        )
        self.limit = limit


class NoSuchTimer(Rejected):
    """The session has no timer of this key: it has fired, was cancelled, or was never set."""

    code = "no_such_timer"
    pointer = "/key"

    def __init__(self, key: str) -> None:
        super().__init__(
            f"the session has no timer {key!r}: it has fired, was cancelled, or was never set; its state lists those it has"
        )


class MailboxFull(CallerError):
    """The session has more queued than it may; nothing was taken. Send it again after `retry_after_s`."""

    code = "mailbox_full"

    def __init__(self, what: str, retry_after_s: float = 0.5) -> None:
        super().__init__(f"{what} is full; nothing was taken, send it again in {retry_after_s:g} s")
        self.retry_after_s = retry_after_s


class DeadlineExceeded(CallerError):
    """No answer within the deadline: the outcome is unknown. Sending the same command id again is safe and tells."""

    code = "deadline_exceeded"


class Quarantined(CallerError):
    """The message crashed its actor twice when run alone and was set aside; the actor goes on."""

    code = "quarantined"


class NotQuarantined(Rejected):
    """Nothing is set aside there."""

    code = "not_quarantined"

    def __init__(self, session_id: str, number: int | None = None) -> None:
        what = f"message {number} of {session_id}" if number is not None else f"session {session_id}"
        super().__init__(f"{what} is not set aside; `sojourn quarantine ls` shows what is")
        self.session_id = session_id
        self.number = number


class NotResendable(Rejected):
    """What is set aside cannot be sent as it is."""

    code = "not_resendable"


class SessionQuarantined(CallerError):
    """An event of the session cannot be applied, so it is read-only. `seq` is that event."""

    code = "session_quarantined"

    def __init__(self, session_id: str, seq: int, error: str) -> None:
        super().__init__(
            f"event {seq} of {session_id} cannot be applied ({error}), so it is read-only at {seq - 1}; nothing is lost. Upgrade "
            "Sojourn if a newer version wrote it, else report it; it is tried again at the next start"
        )
        self.seq = seq


class SetAside(CallerError):
    """The session has lost events and is read-only until a person accepts the loss. `first_seq` to `last_seq` are lost."""

    code = "set_aside"

    def __init__(self, session_id: str, first_seq: int, last_seq: int) -> None:
        super().__init__(
            f"events {first_seq} to {last_seq} of {session_id} are lost, so it is read-only; put the damaged files back "
            f"from a copy and restart, or go on without them: `sojourn accept-loss {session_id}`"
        )
        self.first_seq = first_seq
        self.last_seq = last_seq


class MonitorsFull(CallerError):
    """The node watches as many actors as it may; nothing is watched. End waits for others first."""

    code = "monitors_full"


class DurabilityUnavailable(CallerError):
    """The asked ack level cannot be given now; what was reached stands in `reached`, and is done.

    Attributes:
        reached: the level at which it is done; None: nothing was done.
        session_id, seq: then, of which session what was asked is which event, and of a batch, the last one. None where
            nothing was done.
    """

    code = "durability_unavailable"

    def __init__(
        self,
        asked: str,
        reached: str | None,
        why: str = "there is no mirror",
        *,
        session_id: str | None = None,
        seq: int | None = None,
    ) -> None:
        done = f"what was asked of {session_id} is {reached}, at seq {seq}" if reached else "nothing was done"
        super().__init__(f"the ack level {asked} cannot be given: {why}; {done}. Ask for durable")
        self.reached = reached
        self.session_id = session_id
        self.seq = seq


# -- another process owns what we thought was ours -----------------------------------------------------------------


class OwnershipLost(SojournError):
    """Another process owns this data folder."""

    code = "ownership_lost"


class StaleEpoch(OwnershipLost):
    """A newer owner has raised the epoch: this process is fenced and must stop. Nothing was written."""


class FolderInUse(OwnershipLost):
    """The data folder has an owner. `pid` is its process, or None where it cannot be told."""

    code = "folder_in_use"

    def __init__(self, folder: str, pid: int | None) -> None:
        super().__init__(
            f"data folder {folder} is in use by pid {pid or 'unknown'}; stop that process, name another folder with --data, "
            "or talk to it with --server URL"
        )
        self.pid = pid


# -- a store is at fault: never a crash of an actor ----------------------------------------------------------------


class StoreError(SojournError):
    """A store failed."""

    code = "store_unavailable"
    retry_after_s = 1.0


class StorageFull(StoreError):
    """There is no room: nothing was written. Reads go on, and writes too once there is room."""

    code = "storage_full"


class StoreUnavailable(StoreError):
    """A store did not answer: the outcome is unknown until it is read again. Never raised when nothing was tried."""


class NotOpen(StoreError):
    """The runtime is not open (not yet, or no more); nothing was done."""

    code = "not_open"


class Damaged(StoreError):
    """Stored bytes do not carry their checksum, or miss a part."""

    code = "damaged"


class Missing(Damaged):
    """Events of a session are lost or damaged, and no other copy is known here.

    `first_seq` and `last_seq` say which: at least those, and the first of them is."""

    def __init__(self, session_id: str, first_seq: int, last_seq: int, message: str | None = None) -> None:
        super().__init__(
            message or f"events {first_seq} to {last_seq} of {session_id} are missing or damaged"
        )
        self.session_id = session_id
        self.first_seq = first_seq
        self.last_seq = last_seq


class UnusableFolder(StoreError):
    """The data folder cannot be used: not writable, not ours, or of a newer format."""

    code = "unusable_folder"


class UnusableArchive(StoreError):
    """The archive cannot be used: a wrong setting, no such bucket, or credentials or a right are missing. Nothing was done."""

    code = "unusable_archive"


class UnusableMirror(StoreError):
    """The mirror cannot be used: a wrong setting, no server that would do, or a right or the password is missing. Nothing was
    done, and trying again does not help."""

    code = "unusable_mirror"


class ObjectExists(StoreError):
    """A create-only write found an object of that name; nothing was written."""

    code = "object_exists"


class ObjectMissing(StoreError):
    """There is no object of that name."""

    code = "object_missing"


# -- supervision ---------------------------------------------------------------------------------------------------


class SupervisionError(SojournError):
    """A child could not be kept running."""

    code = "supervision"


class IntensityExceeded(SupervisionError):
    """A child crashed more often than its intensity allows and is set aside until it is released."""

    code = "actor_quarantined"


class StartTimeout(SupervisionError):
    """A child did not say in time that it has started; it was stopped, which counts as a crash."""

    code = "start_timeout"

    def __init__(self, child_id: str, start_s: float) -> None:
        super().__init__(
            f"{child_id} did not say within {start_s:g} s that it has started; it was stopped, and is started again. Look for "
            "what it waits for, or give it more time (start_s)"
        )
        self.child_id = child_id


class JobUnknown(SupervisionError):
    """The job was under way when its actor fell or its process ended: whether it took effect is unknown. It is not run
    again by itself; look at what it was to change, and start it anew where that is needed."""

    code = "job_unknown"


class JobCancelled(SupervisionError):
    """The actor has cancelled the job; how far it had come is unknown."""

    code = "job_cancelled"


class Stopped(SupervisionError):
    """The runtime has stopped before an answer came: the outcome is unknown. Send it again once it is back."""

    code = "not_open"
