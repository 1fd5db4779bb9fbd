"""What the actors need of the world. Each docstring is a contract; `tests/contract` runs it on every adapter.

Rules for all: an async method may be cancelled by its caller, and then what it began is still carried out; a method that
is not async does not block. Driver errors arrive as `StoreError`s with their cause.
"""

import enum
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Mapping,
    MutableMapping,
    MutableSequence,
    Sequence,
)
from datetime import datetime
from typing import Protocol

from attrs import define, field, frozen


class Resting(Protocol):
    """What is awaited between the steps of work that can wait."""

    @property
    def at_once(self) -> int:
        """How many of them may be taken before it is."""
        ...

    async def __call__(self, share: float = 0.0) -> None:
        """
        Args:
            share: how much of what it was given for is done, where that is known; 1 is all of it.
        """
        ...


class RecordKind(enum.IntEnum):
    """What a journal record holds."""

    EVENTS = 1
    EPOCH = 2  # a mark without seq: a process claimed the folder under this epoch
    ATTEMPT = 3  # a mark that stands: a command was being handled when the process was killed
    QUARANTINE = 4  # a mark that stands: a message, or the session itself (number 0), is set aside
    RELEASE = 5  # what stood under this number stands no more


@define
class Record:
    """The events of one slot of one session, which become durable together.

    `payload` holds `count` lines of canonical JSON, one event each, the first of seq `first_seq`; every line ends
    with a newline. A mark has count 0, and its payload is its own; `first_seq` is then its number within its session.
    `documents` are those of the state that the events touched (None: removed), for the mirror, which takes them over; no part
    of what is stored.
    """

    session_id: str
    first_seq: int
    count: int
    epoch: int
    payload: bytes
    kind: RecordKind = RecordKind.EVENTS
    documents: MutableMapping[str, bytes | None] | None = field(default=None, eq=False, repr=False)

    @property
    def last_seq(self) -> int:
        return self.first_seq + self.count - 1


@frozen(kw_only=True)
class JournalStatistics:
    """`records` and `events` and `payload_bytes` are of the events that stand here and were not released; `commits` what
    this process committed. `damaged` counts records that were set aside because their checksum did not hold, and
    `size_bytes` is what the rows hold."""

    sessions: int
    records: int
    events: int
    payload_bytes: int
    commits: int
    damaged: int
    size_bytes: int


class Journal(Protocol):
    """The local durable log: records of all sessions, in the order they were committed."""

    @property
    def epoch(self) -> int:
        """The highest epoch of any record; 0 in a new journal."""
        ...

    def heads(self) -> Mapping[str, int]:
        """Session id to its last seq, for every session in the journal's care: with a record here, or with events that
        were released. A live view: read it, don't keep it."""
        ...

    def pending_bytes(self, session_id: str, after_seq: int) -> int:
        """How many payload bytes lie here of a session's events above `after_seq`, counting whole records."""
        ...

    @property
    def size_bytes(self) -> int:
        """What the rows hold: what the journal is bounded by."""
        ...

    @property
    def freed_bytes(self) -> int:
        """What the rows held that have gone since it was opened: so it is told, too, how much was written meanwhile."""
        ...

    def epoch_of(self, session_id: str) -> int:
        """The epoch that the session's last record here was written in; 0 where none of it is here."""
        ...

    def released(self, session_id: str) -> int:
        """The seq up to which a session's events need not stand here, as `release` was told; 0: none were released."""
        ...

    def oldest(self, size_bytes: int) -> dict[str, int]:
        """What must be released for the oldest rows to go, those that together hold `size_bytes`: session id to its last
        unreleased seq in them. Empty where nothing of theirs is left but the newest row, which always stays."""
        ...

    async def oldest_sparing(
        self, size_bytes: int, spare_bytes: int, rest: Callable[[], Awaitable[None]]
    ) -> dict[str, int]:
        """As `oldest`, but of the oldest rows those may be left out that many sessions would have to be released for, and newer
        ones taken instead.

        Args:
            spare_bytes: what may be left out.
            rest: awaited after each slice of a quarter of a millisecond.
        """
        ...

    async def append(self, records: Sequence[Record]) -> None:
        """Durable on return, all or nothing, in order. One group commit.

        Raises:
            StaleEpoch: a record's epoch is lower than the journal's; nothing was written.
            StorageFull: no room; nothing was written, and a later call may succeed.
            StoreUnavailable: the outcome is unknown until the next call has reopened and read what exists.
        """
        ...

    async def read(
        self, session_id: str, after_seq: int = 0, *, bytes_max: int | None = None
    ) -> list[Record]:
        """A session's records that hold an event above `after_seq`, by seq, without gap or overlap from the first on.

        Args:
            bytes_max: stop after the record with which the payloads reach this many bytes; None: read all.

        Raises:
            Damaged: a record among them does not carry its checksum, or one is missing.
        """
        ...

    async def read_several(
        self, after: Mapping[str, int], upto: Mapping[str, int] | None = None, rest: Resting | None = None
    ) -> Mapping[str, Sequence[Record]]:
        """What `read` gives of each of these sessions above its seq, as far as it can be read; of one that is not here,
        nothing. For sessions that were written at the same time it costs as much as reading one of them. Records of one epoch
        that follow each other may come joined to one.

        Args:
            upto: up to which seq each of them is wanted, or it ends with the record that holds that one; None: all there is.
            rest: awaited between steps of it, where it takes some; None: others have their turn, and it goes on at once.

        Raises:
            StoreUnavailable: as for `append`. Damage does not raise: what does not carry its checksum is left out with all
                that follows it in its session, and `read` tells of it.
        """
        ...

    async def marks(self) -> list[Record]:
        """The marks that stand, by session and number. A mark stands from its commit on until another of the same session
        and number takes its place or releases it, whatever becomes of the session's events; one that does not carry its
        checksum is left out. Marks have no seq, so they make no head, and `release` and `forget` leave them alone.

        Raises:
            StoreUnavailable: the disk did not answer.
        """
        ...

    async def release(self, upto: Mapping[str, int], rest: Resting | None = None) -> None:
        """These sessions' events up to and with a seq are kept elsewhere. Durable on return, and rows that hold nothing
        else are gone; `read` does not give them any more. A seq above the session's head moves the head there: those
        events are lost, and known to be. At or below what was released: nothing happens.

        Args:
            rest: awaited between steps of it, where it takes some.

        Raises:
            StaleEpoch: a newer owner has raised the epoch; this process must stop.
            StorageFull, StoreUnavailable: as for `append`; a part may have been released, and calling again is safe.
        """
        ...

    async def forget(self, session_ids: Collection[str]) -> None:
        """The journal has no more to do with these sessions: all their events are released, and `heads` leaves them out,
        also after it is opened again. Durable on return. A session that is not here: nothing happens. Raises as
        `release`."""
        ...

    def statistics(self) -> JournalStatistics: ...

    async def close(self) -> None:
        """Everything appended is durable and the files are closed. Again: nothing happens."""
        ...


TIERS = ("active", "recent", "archive")  # where a session's data lies, in the order in which it moves


@frozen(kw_only=True)
class CatalogRow:
    """A session as lists show it, at `seq`. `record` is its public record as canonical JSON, without what a reader
    computes (`lost`, `last_sign_at`, `storage.active`); the other fields are what lists filter and sort by, and
    `next_due_at`, when its next timer is due (None: none will be)."""

    session_id: str
    seq: int
    epoch: int
    tier: str
    status: str
    outcome: str | None
    plan: str
    title: str
    user_id: str
    created_at: datetime
    updated_at: datetime
    record: bytes
    next_due_at: datetime | None = None


@frozen(kw_only=True)
class CatalogQuery:
    """Newest first by (created_at, session_id), below `before` where given. `plan`, `status` and `tier` select exactly."""

    limit: int = 50
    before: tuple[datetime, str] | None = None
    plan: str | None = None
    status: frozenset[str] | None = None
    tier: frozenset[str] | None = None


class Catalog(Protocol):
    """The metadata database: a projection of journal and manifests, which can be built anew from them."""

    async def put(self, rows: Sequence[CatalogRow]) -> None:
        """Insert or replace rows, all or nothing. A row of an earlier tier (active, recent, archive) or of a lower (epoch,
        seq) than the one that stands is left out."""
        ...

    async def switch(self, row: CatalogRow, *, from_tier: str) -> bool:
        """Compare and swap: `row`, of a later tier, replaces the session's row where that is of `from_tier` and of the same
        seq. Durable on return. False, and nothing has changed, where it is not, unless `row` itself stands there."""
        ...

    async def in_tier(self, tier: str, *, updated_before: datetime, limit: int) -> list[str]:
        """Ids of the sessions of a tier that were last changed before then, the longest unchanged first."""
        ...

    async def due(
        self, *, before: datetime, after: tuple[datetime, str] | None, limit: int
    ) -> list[tuple[datetime, str]]:
        """(next_due_at, session_id) of the sessions with a timer that is due before then, the first due first, above `after`
        where given. The cost does not grow with the sessions that are not among them."""
        ...

    async def get(self, session_id: str) -> CatalogRow | None: ...

    async def page(self, query: CatalogQuery) -> list[CatalogRow]:
        """At most `query.limit` rows. Every row that stands throughout a walk by `before` is met exactly once."""
        ...

    async def heads(self) -> dict[str, int]:
        """Session id to the seq of its row."""
        ...

    async def epoch(self) -> int:
        """The highest epoch of any row; 0 in an empty catalog."""
        ...

    async def close(self) -> None: ...


class Objects(Protocol):
    """Immutable named objects. A name is `a/b/c.ext`: 1 to 8 parts of `[A-Za-z0-9._-]`, none of them `.` or `..`."""

    async def put(self, name: str, data: bytes, *, create_only: bool = False) -> None:
        """Durable on return, and never seen in part.

        Raises:
            ObjectExists: with `create_only`, where the name is taken; what stands there is unchanged.
            StorageFull, StoreUnavailable: as for the journal.
        """
        ...

    async def put_all(self, objects: Sequence[tuple[str, bytes]]) -> None:
        """Each (name, data) that does not stand there already, and read back: the last one is written once those before it are
        durable, and all are on return. Raises as `put`; StoreUnavailable where something else is read than was written."""
        ...

    async def get(self, name: str) -> bytes:
        """Raises ObjectMissing."""
        ...

    def list(self, prefix: str) -> AsyncIterator[str]:
        """The names below the folder `prefix` (`""`: all), sorted. Leftovers of broken writes are not among them."""
        ...

    async def delete(self, name: str) -> None:
        """Gone durably on return. A name that is not there: nothing happens."""
        ...


class MirrorAnswer(enum.Enum):
    """What became of one session's update."""

    OK = "ok"
    DUP = "dup"  # the mirror stands at its end already
    GAP = "gap"  # the mirror stands elsewhere: send the session whole
    FENCED = "fenced"  # a higher epoch has written: stop
    FOREIGN = "foreign"  # what stands in its place is not ours: nothing was touched, and a person has to look


@define
class MirrorUpdate:
    """Committed events of one session and the documents they touched (None: removed). `whole` replaces what stands
    there: then `documents` are all of them, `first_seq` does not matter, and `events` are the last ones up to `last_seq`. With
    `force` it does so whatever epoch stands there: for who holds the claim, where somebody else changed the keys.

    A session id is 1 to 128 of `[A-Za-z0-9_-]`, and a document's name does not begin with `@`: ValueError otherwise."""

    session_id: str
    epoch: int
    first_seq: int
    last_seq: int
    events: Sequence[bytes]
    documents: Mapping[str, bytes | None]
    whole: bool = False
    force: bool = False


@frozen(kw_only=True)
class MirrorHead:
    """Where the mirror stands with a session."""

    epoch: int
    seq: int


@frozen(kw_only=True)
class MirrorClaim:
    """What `claim` found: OK, this owner held it already under this epoch, and has been connected since; GAP, it does from now
    on, and what stands here may be anything, or nothing; FENCED, a higher epoch of this owner does; FOREIGN, `owner` does."""

    answer: MirrorAnswer
    owner: str


class Mirror(Protocol):
    """The live copy that other processes read. Only committed events come here; it may lose all of them."""

    @property
    def description(self) -> str:
        """The server and where it is, for people; without secrets."""
        ...

    @property
    def is_local(self) -> bool:
        """On this machine: what stands here does not survive the machine's loss."""
        ...

    async def claim(self, owner: str, epoch: int) -> MirrorClaim:
        """This owner writes here, and no other does, for some seconds from now on: claim again meanwhile. The claim of
        another that has run out is taken over by a higher epoch only. It tells that the mirror lost everything, too.

        Raises as `apply`."""
        ...

    async def epoch(self) -> int:
        """The highest epoch that has claimed or written here; 0: none. Raises as `apply`."""
        ...

    async def apply(self, batch: Sequence[MirrorUpdate]) -> list[MirrorAnswer]:
        """One answer per update, in order; sending a batch again is safe (`dup`).

        A second call may be made while the first is under way: they are applied in the order of the calls, but for a
        session that is sent whole, whose next update may be answered `gap` until it is.

        Raises:
            StoreUnavailable: the outcome is unknown; send it again.
            StorageFull: no room; a part of the batch may have been applied.
            UnusableMirror: not as it is configured; send it again once that is mended.
        """
        ...

    async def head(self, session_id: str) -> MirrorHead | None: ...

    async def heads(self) -> dict[str, MirrorHead]:
        """Every session that stands here. What is applied or removed meanwhile may be among them or not."""
        ...

    async def documents(self, session_id: str) -> dict[str, bytes]: ...

    async def events(self, session_id: str, after_seq: int = 0) -> list[tuple[int, bytes]]:
        """(seq, event) of what the mirror still holds above `after_seq`."""
        ...

    async def trim(self, session_id: str, epoch: int, upto_seq: int) -> MirrorAnswer:
        """The session's events up to and with a seq go, since a snapshot holds them; its documents stay. A session that
        is not here: OK, and nothing happens. Raises as `apply`."""
        ...

    async def remove(self, session_id: str, epoch: int, tier: str = "recent") -> MirrorAnswer:
        """The session's documents and events go; for an hour it is said here that it lies in `tier` now, and a lower
        epoch is fenced as before. FENCED where a higher epoch has written them. Raises as `apply`."""
        ...

    async def close(self) -> None:
        """What was begun is carried out or has failed. Again: nothing happens."""
        ...


class Identity(enum.Enum):
    """By what a command is told from others: its id, its source and n, or, where it has neither, a digest of its body."""

    COMMAND_ID = "command_id"
    SOURCE = "source"
    DIGEST = "digest"


@frozen(kw_only=True)
class InFlight:
    """A command that was being handled. `name` is its id, its source or its digest, as `kind` says."""

    session_id: str
    kind: Identity
    n: int
    name: str


class Inflight(Protocol):
    """Which command is being handled now, at a place that outlives the process however it ends: by that a command that
    takes the process along is found. It need not outlive a power cut. `note` is called before every turn, so it
    checks nothing."""

    note: Callable[[bytes, int, bytes], object]
    """(session id, n, name): from here on this command is being handled: n from 1 of the source `name`; with n 0 the one
    of the id `name`, and with n -1 of that digest. A session id beyond 64 bytes is cut, and a name beyond 256."""

    page: MutableSequence[int]
    """`page[0] = 0`: nothing is being handled. No method, because that costs three times as much."""

    def left(self) -> InFlight | None:
        """What stood there when it was opened: the process before was killed while it handled that. None: it was not."""
        ...

    def close(self) -> None:
        """Nothing is being handled any more. Again: nothing happens."""
        ...


class Clock(Protocol):
    """Time comes from here and nowhere else."""

    def now(self) -> datetime:
        """Wall clock, aware UTC. May step either way."""
        ...

    def monotonic(self) -> float:
        """Seconds that never fall; from any zero."""
        ...
