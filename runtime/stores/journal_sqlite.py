"""The journal: a SQLite database in which one row is one group commit.

Rows cost more than syncs (rows of one event 53 k/s, rows of 1,024 events 1.3 M/s), so the records of a group commit
are framed in one blob (`frames`), and where each one lies is held in memory (`journal_index`). WAL with
`synchronous=FULL` lost nothing at power cuts; with NORMAL it does. The log is written back when nothing is waiting, and
between two commits once it has grown to `WAL_BYTES_MAX`, or to what the reserve can carry (`reserve`); never inside a
commit.

A row goes once all of its records are released. What was released is committed first, then its rows are deleted, a few
at a time so that commits get their turn; a crash between leaves rows that go at the next opening. SQLite uses the freed
pages again, so the file is as large as the journal ever was. The newest row never goes: `row` then never falls, and an
owner that opens the file anew sees whether it has lost its end.

A commit is one SQL statement: the owner thread gives the interpreter lock back during each, and gets it back only when
the event loop pauses. For the same reason a read takes many records in one statement, of all sessions that wait to be read
where they are short. An owner reads in a second thread (`journal_reader`), so that no commit waits behind reads.

SQLite drops a damaged tail of its log silently, and an older copy looks whole; that shows against the mark beside the
file (`mark`). Opening checks the structure of all pages. Where that does not hold, an owner makes a new file of what can
be read (`journal_salvage`), and a reader reads what it can.
"""

import contextlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path

import anyio
import structlog
from anyio.lowlevel import checkpoint

from ...actors.errors import StorageFull, UnusableFolder
from ...actors.ports import JournalStatistics, Record, RecordKind, Resting
from ..bridge import OwnerThread
from ..gathering import GatheringThread
from . import frames
from .journal_choice import Choice
from .journal_database import JournalDatabase
from .journal_reader import bytes_of, follows
from .journal_sweep import STEPS_MAX, Sweep
from .reserve import Reserve

log = structlog.get_logger("sojourn.journal")

RELEASE_SESSIONS_MAX = 1024


class SqliteJournal:
    """`Journal` on a SQLite file. Opened by `open`; runs on asyncio and on trio.

    After `StoreUnavailable` the next `append`, `read` or `refresh` closes the database, opens it again and indexes the
    rows beyond the last known one before it does anything else: from then on `heads` tells what exists. `append(())`
    does that alone. Records queued behind a failed append do not follow any more and are refused with ValueError.
    """

    def __init__(self, database: JournalDatabase, owner: OwnerThread) -> None:
        self._database = database
        self._owner = owner
        reader = database.reader
        self._reads = (
            owner
            if database.read_only
            else GatheringThread(f"journal {database.path.name} reads", {reader.read: reader.read_together})
        )
        self._read = database.read if database.read_only else reader.read
        self._left = 0  # appends whose callers did not wait for them,
        self._passed = 0  # and how many of them are known to be over

    @classmethod
    async def open(
        cls, path: Path, *, read_only: bool = False, reserve: Reserve | None = None
    ) -> "SqliteJournal":
        """Opens the journal, makes it where there is none, brings one of an older format to this one, indexes what it
        holds, and deletes rows that a crash has left although nothing needs them.

        A read-only journal takes no lock, changes no file, shows what stood there when it was opened or last
        refreshed, and works beside a live writer, after one was killed, and in a folder that cannot be written.

        What is found wrong and can be lived with is logged, and `flaws` says it.

        Args:
            reserve: kept and given up as its module says, from the first epoch on that is raised here; None: there is none.

        Raises:
            UnusableFolder: the file is of a newer format, not a journal, or cannot be made or opened there.
            Damaged: SQLite cannot read the file at all. Damaged records do not raise here, but when they are read.
            StoreUnavailable: the disk did not answer.
        """
        database = JournalDatabase(path, read_only=read_only, reserve=reserve)
        owner = OwnerThread(f"journal {path.name}", idle=database.idle)
        opened = False
        try:
            await owner.run(database.open)
            if not read_only:
                # Where there is no room to delete in, they go with the next release.
                with contextlib.suppress(StorageFull):
                    while await owner.run(database.delete):
                        pass
            opened = True
            if database.flaws:
                log.error(
                    "journal.damaged",
                    path=str(path),
                    found=database.flaws,
                    moved_to=str(database.moved_to) if database.moved_to else None,
                    remedy="what could be read is used, and sessions that have lost events say so; put the file back from a "
                    "copy to have them again",
                )
        finally:
            if not opened:  # failed or cancelled: the thread ends once it has closed what it may have opened
                await owner.close(database.close)
        return cls(database, owner)

    @property
    def flaws(self) -> tuple[str, ...]:
        """What was found wrong when it was opened, in words; it is logged, too."""
        return tuple(self._database.flaws)

    @property
    def epoch(self) -> int:
        return self._database.index.epoch

    def heads(self) -> Mapping[str, int]:
        return self._database.index.heads

    def pending_bytes(self, session_id: str, after_seq: int) -> int:
        return self._database.index.pending_bytes(session_id, after_seq)

    @property
    def size_bytes(self) -> int:
        return self._database.index.rows.size_bytes

    @property
    def freed_bytes(self) -> int:
        return self._database.index.rows.freed_bytes

    def epoch_of(self, session_id: str) -> int:
        return self._database.index.last_epoch(session_id)

    def released(self, session_id: str) -> int:
        return self._database.index.released(session_id)

    def oldest(self, size_bytes: int) -> dict[str, int]:
        return self._database.index.oldest(size_bytes)

    async def oldest_sparing(
        self, size_bytes: int, spare_bytes: int, rest: Callable[[], Awaitable[None]]
    ) -> dict[str, int]:
        choice = Choice(self._database.index, size_bytes, spare_bytes)
        while not choice.is_over:
            choice.step()
            await rest()
        return choice.needed()

    def statistics(self) -> JournalStatistics:
        return self._database.index.statistics()

    async def append(self, records: Sequence[Record]) -> None:
        self._check_writable()
        rows = frames.encode(records)
        marks: Sequence[Record] = ()
        if any(
            max(row.kinds) > RecordKind.EPOCH for row in rows
        ):  # marks that stand have a table of their own
            marks = [record for record in records if record.kind > RecordKind.EPOCH]
            rows = frames.encode([record for record in records if record.kind <= RecordKind.EPOCH])
        try:
            await self._owner.run(self._database.append, rows, marks)
        except anyio.get_cancelled_exc_class():
            self._left += 1
            raise

    async def marks(self) -> list[Record]:
        return await self._owner.run(self._database.marks)

    async def release(self, upto: Mapping[str, int], rest: Resting | None = None) -> None:
        self._check_writable()
        with anyio.CancelScope(shield=True):  # what was begun is carried out, in several hops
            await self._release(upto, rest)
            await self._delete(rest)

    async def forget(self, session_ids: Collection[str]) -> None:
        self._check_writable()
        heads = self.heads()
        left = [session_id for session_id in session_ids if session_id in heads]
        more = False
        with anyio.CancelScope(shield=True):
            while left:
                some, left = left[:RELEASE_SESSIONS_MAX], left[RELEASE_SESSIONS_MAX:]
                too_many, more = await self._owner.run(self._database.forget, some)
                await self._release({session_id: heads[session_id] for session_id in too_many})
                left = too_many + left
            if more:
                await self._delete()

    async def _release(self, upto: Mapping[str, int], rest: Resting | None = None) -> None:
        names = list(upto)
        for start in range(0, len(names), RELEASE_SESSIONS_MAX):
            left = {
                session_id: upto[session_id] for session_id in names[start : start + RELEASE_SESSIONS_MAX]
            }
            while left:
                left = await self._owner.run(self._database.release, left)
                if rest is not None:
                    await rest()

    async def _delete(self, rest: Resting | None = None) -> None:
        while await self._owner.run(self._database.delete):
            if rest is not None:
                await rest()

    def _check_writable(self) -> None:
        if self._database.read_only:
            raise UnusableFolder(f"the journal {self._database.path} was opened to be read only")

    async def read(
        self, session_id: str, after_seq: int = 0, *, bytes_max: int | None = None
    ) -> list[Record]:
        while True:
            found: list[Record] = []
            at, rest = after_seq, bytes_max
            while True:
                await self._settle()
                part = await self._reads.run(self._read, session_id, at, rest)
                if part is None or (found and not follows(part, found)):
                    break  # released since: what there is now begins above, and has no gap
                found += part.records
                if not part.more:
                    return found
                at = found[-1].last_seq
                if rest is not None:
                    rest -= bytes_of(part.records)

    async def read_several(
        self, after: Mapping[str, int], upto: Mapping[str, int] | None = None, rest: Resting | None = None
    ) -> Mapping[str, Sequence[Record]]:
        self._check_writable()
        await self._settle()
        sweep = Sweep(self._database.index, after, upto)
        while not sweep.is_over:
            if sweep.wants_rows:
                await self._reads.run(self._database.reader.read_rows, sweep)
            for _ in range(rest.at_once if rest is not None else STEPS_MAX):
                sweep.step()
            if rest is not None:
                await rest(sweep.share)
            else:
                await checkpoint()
        return sweep.found

    async def _settle(self) -> None:
        if self._database.unknown or self._left > self._passed:
            left = self._left
            await self._owner.run(self._database.settle)
            self._passed = left

    async def refresh(self) -> None:
        """Takes in what the writer has committed and released since (read-only journals)."""
        await self._owner.run(self._database.refresh)

    async def close(self) -> None:
        if not self._database.read_only:
            await self._reads.close(self._database.reader.disconnect)
        await self._owner.close(self._database.close)
