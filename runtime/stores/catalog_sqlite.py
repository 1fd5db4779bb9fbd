"""The catalog: one row per session in a SQLite database, for lists and look-ups.

It is a projection: the journal and the manifests are the facts, so its log is not synced at every commit (WAL with
`synchronous=NORMAL`: a power cut may take the last rows back, never damage it), and the runtime writes what is missing
anew when it opens. Writing and reading go over two connections: a list never waits for a transaction, nor sees one.
"""

import asyncio
import contextlib
import itertools
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import aiosqlite
import anyio
import structlog
from attrs import define, field

from ...actors.errors import Damaged, NotOpen, StorageFull, StoreError, StoreUnavailable, UnusableFolder
from ...actors.ports import TIERS, CatalogQuery, CatalogRow
from .catalog_rows import checksum, from_sql, head_values, holds, microseconds, moment, to_sql
from .catalog_schema import (
    DUE,
    HEAD_VERSION,
    IN_TIER,
    IN_TIER_AT_REST,
    MIGRATIONS,
    PUT,
    PUT_PROGRESS,
    READ,
    READ_HEAD,
    READABLE_VERSION_MIN,
    SWITCH,
    VERSION,
    WRITE_HEAD,
    page_sql,
    read_of,
)
from .mark import Mark, read_mark
from .sqlite_files import (
    BUSY_TIMEOUT_S,
    FLAWS_MAX,
    NO_SHARED_MEMORY,
    UNREADABLE,
    flaws_in,
    lacks_shared_memory,
    primary_code,
    private_copy,
    private_copy_path,
    schema_damage_told,
    schema_of,
    stored_schema,
    uri,
)

P = ParamSpec("P")
T = TypeVar("T")
# 16 MiB, which take 10 ms to read at a start. Writing the log back syncs it and the database, and whoever waits for a commit of
# the journal meanwhile waits for these syncs, too: at SQLite's 1,000 pages one ask in a hundred did.
WAL_PAGES = 4_000
log = structlog.get_logger("sojourn.catalog")


@define(eq=False)
class SqliteCatalog:
    """`Catalog` on a SQLite file. Opened by `open`; runs on asyncio.

    A caller that is cancelled during `put` goes at once, and the transaction is carried out. After `StoreUnavailable`
    from `put` the next one opens the database anew; putting the same rows again is safe.

    Every row carries a checksum, which is looked at whenever it is read. One that does not hold is said, and `rederive`
    says what it should be: that is answered, and, by an owner, written anew.
    """

    _path: Path
    _reader: "_Connection"
    _read_only: bool
    _writer: "_Connection | None" = None
    _copy: "tempfile.TemporaryDirectory[str] | None" = None
    rederive: "Callable[[str], Awaitable[CatalogRow | None]] | None" = None
    _version: int = VERSION
    _mark: Mark = field(init=False)
    _closed: bool = field(default=False, init=False)
    _writing: asyncio.Lock = field(factory=asyncio.Lock, init=False)
    _under_way: "set[asyncio.Task[Any]]" = field(factory=set, init=False)

    def __attrs_post_init__(self) -> None:
        self._mark = Mark(self._path)

    @classmethod
    async def open(cls, path: Path, *, read_only: bool = False) -> "SqliteCatalog":
        """Opens the catalog; unless `read_only`, makes it where there is none and migrates an older one.

        A read-only catalog works beside a live writer, after one was killed, and in a folder that cannot be written;
        in the last case it shows what stood there when it was opened.

        Raises:
            UnusableFolder: the file is of a newer version, or cannot be made or opened there.
            Damaged: it is no readable database, its pages or indices are damaged, or its end is lost. Damaged content of rows
                does not raise here, but `damaged_rows` finds it.
            StoreUnavailable: the disk did not answer.
        """
        async with contextlib.AsyncExitStack() as opened:
            try:
                marked = read_mark(path)  # before the rows: a live owner goes on
                with schema_damage_told():
                    catalog = await (cls._open_read_only if read_only else cls._open)(path, opened)
                    await catalog._compare(marked)
            except sqlite3.Error as error:
                raise _translated(path, error) from error
            opened.pop_all()
            return catalog

    @classmethod
    async def _open(cls, path: Path, opened: contextlib.AsyncExitStack) -> "SqliteCatalog":
        writer = await _connect_writer(path)
        opened.push_async_callback(writer.end)
        await _check(writer, path)
        await _migrate(writer, path)
        reader = await _connect(path, "ro")
        opened.push_async_callback(reader.end)
        return cls(path, reader, False, writer)

    @classmethod
    async def _open_read_only(cls, path: Path, opened: contextlib.AsyncExitStack) -> "SqliteCatalog":
        if not path.exists():
            raise UnusableFolder(f"there is no catalog at {path}; name the data folder with --data")
        copy = None
        try:
            reader = await _connect(path, "ro")
        except sqlite3.Error as error:
            if not lacks_shared_memory(error):
                raise
            copy = private_copy(path)
            opened.callback(copy.cleanup)
            reader = await _connect(private_copy_path(copy), "rw")
        opened.push_async_callback(reader.end)
        version = await _version(reader, path)
        if version < READABLE_VERSION_MIN:
            raise UnusableFolder(
                f"the catalog {path} is of version {version}, this Sojourn reads version {READABLE_VERSION_MIN} and up; "
                "`sojourn serve` on the folder brings it up to date"
            )
        await _check(reader, path)
        return cls(path, reader, True, None, copy, version=version)

    async def damaged_rows(self) -> list[str]:
        """The ids of all rows whose checksum does not hold, as these rows say; every row is read. Rows of an older version
        have none."""
        if not self._checked:
            return []
        rows = await self._select(f"SELECT {self._read} FROM session", ())
        return [str(row[0]) for row in rows if not holds(row[:-1])]

    async def put(self, rows: Sequence[CatalogRow]) -> None:
        self._must_be_writable()
        # The journal is no copy of what was handed over: such a row is not lost at a power cut.
        synced = any(row.tier != TIERS[0] for row in rows)
        # Their checksums are made by the thread that writes: made here, those of 500 rows held the event loop for 3 ms.
        await self._carried_out(self._write([PUT_PROGRESS, PUT], map(to_sql, rows), synced=synced))

    async def switch(self, row: CatalogRow, *, from_tier: str) -> bool:
        self._must_be_writable()
        values = (*to_sql(row), row.session_id, from_tier, row.seq)
        await self._carried_out(self._write([SWITCH], [values], synced=True))
        return await self.get(row.session_id) == row

    async def in_tier(self, tier: str, *, updated_before: datetime, limit: int) -> list[str]:
        sql = IN_TIER if tier == TIERS[0] else IN_TIER_AT_REST
        rows = await self._select(sql, (tier, microseconds(updated_before), limit))
        return [session_id for (session_id,) in rows]

    async def due(
        self, *, before: datetime, after: tuple[datetime, str] | None, limit: int
    ) -> list[tuple[datetime, str]]:
        above = (microseconds(after[0]), after[1]) if after is not None else (-(1 << 63), "")
        rows = await self._select(DUE, (microseconds(before), *above, limit))
        return [(moment(due_at), session_id) for due_at, session_id in rows]

    async def get(self, session_id: str) -> CatalogRow | None:
        rows = await self._select(f"SELECT {self._read} FROM session WHERE session_id = ?", (session_id,))
        return await self._row(rows[0], session_id) if rows else None

    async def page(self, query: CatalogQuery) -> list[CatalogRow]:
        found = [
            await self._row(row, str(row[0])) for row in await self._select(*page_sql(query, self._read))
        ]
        return [row for row in found if row is not None]

    async def heads(self) -> dict[str, int]:
        return dict(await self._select("SELECT session_id, seq FROM session", ()))

    async def epoch(self) -> int:
        rows = await self._select("SELECT coalesce(max(epoch), 0) FROM session", ())
        return int(rows[0][0])

    async def close(self) -> None:
        """What was begun is carried out and the files are closed. Again: nothing happens."""
        if self._closed:
            return
        self._closed = True
        self._mark.close()
        with anyio.CancelScope(shield=True):
            while self._under_way:  # puts whose callers have gone
                await asyncio.wait(self._under_way)
            await self._reader.end()
            if self._writer is not None:
                await self._writer.end()
            if self._copy is not None:
                self._copy.cleanup()

    @property
    def _checked(self) -> bool:
        return self._version >= HEAD_VERSION

    @property
    def _read(self) -> str:
        return read_of(self._version)

    async def _compare(self, marked: tuple[int, int, int] | None) -> None:
        """With how far it had come when something was last committed."""
        if not self._checked:
            return
        head = await self._select(READ_HEAD, ())
        if [head_values(*line[:2]) for line in head] != head or len(head) != 1:
            raise _unreadable(self._path, "its head does not carry its checksum")
        commits, synced, _ = head[0]
        marked_commits, marked_synced, _ = marked or (0, 0, 0)
        if synced < marked_synced:
            raise _unreadable(self._path, "its last commits are lost, or it is an older copy")
        if commits < marked_commits:  # as a power cut may have it: they were not synced
            log.warning(
                "catalog.end_lost",
                path=str(self._path),
                commits=marked_commits - commits,
                remedy="none is needed: the rows of active sessions are written anew from the journal",
            )

    async def _row(self, values: tuple[Any, ...], session_id: str) -> CatalogRow | None:
        """The row, or what it should be; None where it is not known what that is."""
        *columns, place = values
        if not self._checked or (holds(columns) and columns[0] == session_id):
            return from_sql(columns)
        row = await self.rederive(session_id) if self.rederive is not None else None
        log.error(
            "catalog.row_damaged",
            session=session_id,
            remedy="it is written anew from journal or manifest"
            if row is not None
            else "lists lack it until the catalog is built anew: restart, or run `sojourn rebuild-catalog`",
        )
        if row is not None and not self._read_only and not self._closed:
            await self._carried_out(self._replace(place, row))
        return row

    async def _replace(self, place: int, row: CatalogRow) -> None:
        try:
            await self._write([PUT], [to_sql(row)], synced=True, damaged_at=place)
        except StoreError as error:
            log.error(
                "catalog.row_not_mended",
                session=row.session_id,
                error=str(error),
                remedy="it is answered as it should be; the next start builds the catalog anew",
            )

    async def _carried_out(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result; goes on when the caller is cancelled."""
        task = asyncio.ensure_future(work)
        self._under_way.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    def _must_be_writable(self) -> None:
        if self._closed:
            raise NotOpen
        if self._read_only:
            raise UnusableFolder(f"the catalog {self._path} was opened to be read only")

    async def _write(
        self,
        statements: Sequence[str],
        rows: Iterable[tuple[Any, ...]],
        *,
        synced: bool = False,
        damaged_at: int | None = None,
    ) -> None:
        async with self._writing:
            try:
                if self._writer is None:
                    self._writer = await _connect_writer(self._path)
                self._mark.note(*await self._writer.run(_transact, statements, rows, synced, damaged_at))
            except sqlite3.Error as error:
                # Closing rolls back; and after a failed sync a descriptor tells no truth any more. The next put opens anew.
                writer, self._writer = self._writer, None
                if writer is not None:
                    with contextlib.suppress(sqlite3.Error):
                        await writer.end()
                raise _translated(self._path, error) from error

    async def _select(self, sql: str, values: tuple[Any, ...]) -> list[Any]:
        if self._closed:
            raise NotOpen
        try:
            return list(await self._reader.execute_fetchall(sql, values))
        except sqlite3.Error as error:
            raise _translated(self._path, error) from error


class _Connection(aiosqlite.Connection):
    """A connection whose end can be waited for, however far it came: its thread reports to the event loop when it ends,
    and fails when the loop has ended before."""

    _ended: "asyncio.Future[Any] | None" = None

    def stop(self) -> "asyncio.Future[Any] | None":
        self._ended = super().stop()
        return self._ended

    async def run(
        self, work: "Callable[Concatenate[sqlite3.Connection, P], T]", *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Calls `work` with SQLite's connection on the thread, in one go."""
        result: T = await self._execute(work, self._conn, *args, **kwargs)  # type: ignore[no-untyped-call]
        return result

    async def end(self) -> None:
        """The file is closed and the thread has ended."""
        with anyio.CancelScope(shield=True):
            ended = self._ended or self.stop()
            if ended is not None:
                await ended


async def _connect(path: Path, mode: str) -> _Connection:
    """A connection whose first read has succeeded."""

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(uri(path, mode), uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S)

    connection = _Connection(connect, iter_chunk_size=64)
    async with contextlib.AsyncExitStack() as opened:
        opened.push_async_callback(connection.end)
        await connection
        connection.text_factory = _text
        await connection.execute_fetchall("SELECT count(*) FROM sqlite_schema")
        opened.pop_all()
    return connection


async def _connect_writer(path: Path) -> _Connection:
    try:
        connection = await _connect(path, "rwc")
    except sqlite3.OperationalError as error:
        if primary_code(error) in NO_SHARED_MEMORY:
            raise UnusableFolder(
                f"the catalog {path} cannot be opened ({error}); check that its folder exists and can be written, "
                "or name another folder with --data"
            ) from error
        raise
    async with contextlib.AsyncExitStack() as opened:
        opened.push_async_callback(connection.end)
        await connection.execute_fetchall("PRAGMA journal_mode = WAL")
        await connection.execute_fetchall("PRAGMA synchronous = NORMAL")
        await connection.execute_fetchall(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
        opened.pop_all()
    return connection


async def _version(connection: aiosqlite.Connection, path: Path) -> int:
    ((version,),) = await connection.execute_fetchall("PRAGMA user_version")
    if version > VERSION:
        raise UnusableFolder(
            f"the catalog {path} is of version {version}, this Sojourn knows versions up to {VERSION}; open it with the "
            "newer Sojourn that wrote it, or name another folder with --data"
        )
    return int(version)


async def _check(connection: aiosqlite.Connection, path: Path) -> None:
    """That its tables are ours, and that pages and indices are whole. It reads every page: 0.13 s for 10,000 sessions.

    Raises:
        Damaged: they are not.
    """
    version = await _version(connection, path)
    schema = await connection.execute_fetchall("SELECT type, name, tbl_name, sql FROM sqlite_schema")
    if stored_schema(schema) != schema_of(MIGRATIONS[:version]):
        raise _unreadable(path, f"its tables are not those of version {version}")
    found = await connection.execute_fetchall(f"PRAGMA integrity_check({FLAWS_MAX})")
    flaws = flaws_in(found)
    if flaws:
        raise _unreadable(path, "; ".join(flaws))


async def _migrate(connection: aiosqlite.Connection, path: Path) -> None:
    """Each step is a transaction with its version, so a migration that was killed goes on where it stood."""
    for version in range(await _version(connection, path), VERSION):
        await connection.execute_fetchall("BEGIN IMMEDIATE")
        for statement in filter(str.strip, MIGRATIONS[version].split(";")):
            await connection.execute_fetchall(statement)
        if version + 1 == HEAD_VERSION:
            read = read_of(HEAD_VERSION)
            rows = await connection.execute_fetchall(f"SELECT {read} FROM session")
            sums = [(checksum(row[:-2]), row[-1]) for row in rows]
            await connection.executemany("UPDATE session SET checksum = ? WHERE rowid = ?", sums)
            await connection.execute_fetchall(WRITE_HEAD, head_values(0, 0))
        await connection.execute_fetchall(f"PRAGMA user_version = {version + 1}")
        await connection.execute_fetchall("COMMIT")


def _transact(
    connection: sqlite3.Connection,
    statements: Sequence[str],
    rows: Iterable[tuple[Any, ...]],
    synced: bool,
    damaged_at: int | None,
) -> tuple[int, int]:
    """Each statement with every row, in one transaction. Returns how many there were so far, and how many of them synced."""
    # No pragma takes effect within a transaction (https://sqlite.org/pragma.html#pragma_synchronous).
    connection.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
    connection.execute("BEGIN IMMEDIATE")
    if damaged_at is not None:
        _remove_damaged(connection, damaged_at)
    for sql, again in zip(statements, itertools.tee(rows, len(statements)), strict=True):
        connection.executemany(sql, again)
    ((commits, synced_before, _),) = connection.execute(READ_HEAD).fetchall()
    counts = (commits + 1, synced_before + synced)
    connection.execute(WRITE_HEAD, head_values(*counts))
    connection.execute("COMMIT")
    return counts


def _remove_damaged(connection: sqlite3.Connection, place: int) -> None:
    """A row whose checksum does not hold, where it still stands there: another task may have been quicker."""
    rows = connection.execute(f"SELECT {READ} FROM session WHERE rowid = ?", (place,)).fetchall()
    if any(not holds(row[:-1]) for row in rows):
        # Indices first: an entry that differs from its damaged row could not be removed with it.
        connection.execute("REINDEX session")
        connection.execute("DELETE FROM session WHERE rowid = ?", (place,))


def _text(data: bytes) -> str:
    """Damaged text is told by its checksum, not by an error of the driver that costs the rows beside it, too."""
    return data.decode("utf-8", "replace")


def _translated(path: Path, error: sqlite3.Error) -> StoreError:
    if primary_code(error) == sqlite3.SQLITE_FULL:
        return StorageFull(f"no room for the catalog {path}; nothing was written, free some space")
    if primary_code(error) in UNREADABLE:
        return _unreadable(path, str(error))
    return StoreUnavailable(f"the catalog {path} failed ({error}); putting the same rows again is safe")


def _unreadable(path: Path, why: str) -> Damaged:
    return Damaged(
        f"the catalog {path} cannot be read ({why}); move it and its -wal, -shm and -mark files aside: it is built anew "
        "from the journal and the manifests when the folder is next opened"
    )
