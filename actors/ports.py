"""What the actors need of the world. Each docstring is a contract; `tests/contract` runs it on every adapter.

Rules for all: an async method may be cancelled by its caller, and then what it began is still carried out; a method that
is not async does not block. Driver errors arrive as `StoreError`s with their cause.
"""

import enum
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from attrs import define, frozen


class RecordKind(enum.IntEnum):
    """What a journal record holds."""

    EVENTS = 1
    EPOCH = 2  # a mark without seq: a process claimed the folder under this epoch


@define
class Record:
    """The events of one slot of one session, which become durable together.

    `payload` holds `count` lines of canonical JSON, one event each, the first of seq `first_seq`; every line ends
    with a newline. A mark has count 0, and its payload is its own.
    """

    session_id: str
    first_seq: int
    count: int
    epoch: int
    payload: bytes
    kind: RecordKind = RecordKind.EVENTS

    @property
    def last_seq(self) -> int:
        return self.first_seq + self.count - 1


@frozen(kw_only=True)
class JournalStatistics:
    """`records` and `events` and `payload_bytes` are what the journal holds; `commits` what this process committed.
    `damaged` counts records that were set aside because their checksum did not hold."""

    sessions: int
    records: int
    events: int
    payload_bytes: int
    commits: int
    damaged: int


class Journal(Protocol):
    """The local durable log: records of all sessions, in the order they were committed."""

    @property
    def epoch(self) -> int:
        """The highest epoch of any record; 0 in a new journal."""
        ...

    def heads(self) -> Mapping[str, int]:
        """Session id to its last seq, for every session with a record here. A live view: read it, don't keep it."""
        ...

    def pending_bytes(self, session_id: str, after_seq: int) -> int:
        """How many payload bytes lie here of a session's events above `after_seq`, counting whole records."""
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

    def statistics(self) -> JournalStatistics: ...

    async def close(self) -> None:
        """Everything appended is durable and the files are closed. Again: nothing happens."""
        ...


@frozen(kw_only=True)
class CatalogRow:
    """A session as lists show it, at `seq`. `record` is its public record as canonical JSON, without what a reader
    computes (`lost`, `last_sign_at`, `storage.active`); the other fields are what lists filter and sort by."""

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


@frozen(kw_only=True)
class CatalogQuery:
    """Newest first by (created_at, session_id), below `before` where given. `status` and `plan` select exactly."""

    limit: int = 50
    before: tuple[datetime, str] | None = None
    plan: str | None = None
    status: frozenset[str] | None = None


class Catalog(Protocol):
    """The metadata database: a projection of journal and manifests, which can be built anew from them."""

    async def put(self, rows: Sequence[CatalogRow]) -> None:
        """Insert or replace rows, all or nothing. A row of a lower (epoch, seq) than the one that stands is left out."""
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
    DUP = "dup"  # the mirror is at or beyond it already
    GAP = "gap"  # the mirror stands elsewhere: send the session whole
    FENCED = "fenced"  # a higher epoch has written: stop


@frozen(kw_only=True)
class MirrorUpdate:
    """Committed events of one session and the documents they touched (None: removed). `whole` replaces what stands
    there, and then `documents` are all of them and `first_seq` does not matter."""

    session_id: str
    epoch: int
    first_seq: int
    last_seq: int
    events: tuple[bytes, ...]
    documents: Mapping[str, bytes | None]
    whole: bool = False


@frozen(kw_only=True)
class MirrorHead:
    """Where the mirror stands with a session."""

    epoch: int
    seq: int


class Mirror(Protocol):
    """The live copy that other processes read. Only committed events come here; it may lose all of them."""

    async def apply(self, batch: Sequence[MirrorUpdate]) -> list[MirrorAnswer]:
        """One answer per update, in order; sending a batch again is safe (`dup`). Raises StoreUnavailable: unknown."""
        ...

    async def head(self, session_id: str) -> MirrorHead | None: ...

    async def documents(self, session_id: str) -> dict[str, bytes]: ...

    async def events(self, session_id: str, after_seq: int = 0) -> list[tuple[int, bytes]]:
        """(seq, event) of what the mirror still holds above `after_seq`."""
        ...

    async def remove(self, session_id: str, epoch: int) -> MirrorAnswer:
        """The session's keys go; FENCED where a higher epoch has written them."""
        ...

    async def close(self) -> None: ...


class Clock(Protocol):
    """Time comes from here and nowhere else."""

    def now(self) -> datetime:
        """Wall clock, aware UTC. May step either way."""
        ...

    def monotonic(self) -> float:
        """Seconds that never fall; from any zero."""
        ...
