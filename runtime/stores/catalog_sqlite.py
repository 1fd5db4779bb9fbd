"""The catalog: one row per session in a SQLite database, for lists and look-ups.

It is a projection: the journal and the manifests are the facts, so its log is not synced at every commit (WAL with
`synchronous=NORMAL`: a power cut may take the last rows back, never damage it), and the runtime writes what is missing
anew when it opens. Writing and reading go over two connections: a list never waits for a transaction, nor sees one.
"""

import asyncio
import contextlib
import sqlite3
import tempfile
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite
import anyio
from attrs import define, field

from ...actors.errors import Damaged, NotOpen, StorageFull, StoreError, StoreUnavailable, UnusableFolder
from ...actors.ports import CatalogQuery, CatalogRow
from .sqlite_files import (
    BUSY_TIMEOUT_S,
    NO_SHARED_MEMORY,
    UNREADABLE,
    primary_code,
    private_copy,
    private_copy_path,
    uri,
)

T = TypeVar("T")

# Script n brings a catalog of version n to version n + 1. Add at the end, and never change one that was released.
MIGRATIONS = (
    """
    CREATE TABLE session(
        session_id TEXT PRIMARY KEY,
        seq INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        tier TEXT NOT NULL,
        status TEXT NOT NULL,
        outcome TEXT,
        plan TEXT NOT NULL,
        title TEXT NOT NULL,
        user_id TEXT NOT NULL,
        created_at INTEGER NOT NULL, -- microseconds since 1970, UTC
        updated_at INTEGER NOT NULL,
        record BLOB NOT NULL
    );
    CREATE INDEX session_by_age ON session(created_at DESC, session_id DESC);
    CREATE INDEX session_by_plan ON session(plan, created_at DESC, session_id DESC);
    CREATE INDEX session_by_status ON session(status, created_at DESC, session_id DESC);
    CREATE INDEX session_by_epoch ON session(epoch);
    """,
)
VERSION = len(MIGRATIONS)

_COLUMNS = (
    "session_id, seq, epoch, tier, status, outcome, plan, title, user_id, created_at, updated_at, record"
)
_PUT = f"""
INSERT INTO session({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT(session_id) DO UPDATE SET seq = excluded.seq, epoch = excluded.epoch, tier = excluded.tier,
    status = excluded.status, outcome = excluded.outcome, plan = excluded.plan, title = excluded.title,
    user_id = excluded.user_id, created_at = excluded.created_at, updated_at = excluded.updated_at,
    record = excluded.record
WHERE (excluded.epoch, excluded.seq) >= (session.epoch, session.seq)
"""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@define(eq=False)
class SqliteCatalog:
    """`Catalog` on a SQLite file. Opened by `open`; runs on asyncio.

    A caller that is cancelled during `put` goes at once, and the transaction is carried out. After `StoreUnavailable`
    from `put` the next one opens the database anew; putting the same rows again is safe.
    """

    _path: Path
    _reader: "_Connection"
    _read_only: bool
    _writer: "_Connection | None" = None
    _copy: "tempfile.TemporaryDirectory[str] | None" = None
    _closed: bool = field(default=False, init=False)
    _writing: asyncio.Lock = field(factory=asyncio.Lock, init=False)
    _under_way: "set[asyncio.Task[Any]]" = field(factory=set, init=False)

    @classmethod
    async def open(cls, path: Path, *, read_only: bool = False) -> "SqliteCatalog":
        """Opens the catalog; unless `read_only`, makes it where there is none and migrates an older one.

        A read-only catalog works beside a live writer, after one was killed, and in a folder that cannot be written;
        in the last case it shows what stood there when it was opened.

        Raises:
            UnusableFolder: the file is of a newer version, or cannot be made or opened there.
            Damaged: it is no readable database.
            StoreUnavailable: the disk did not answer.
        """
        async with contextlib.AsyncExitStack() as opened:
            try:
                catalog = await (cls._open_read_only if read_only else cls._open)(path, opened)
            except sqlite3.Error as error:
                raise _translated(path, error) from error
            opened.pop_all()
            return catalog

    @classmethod
    async def _open(cls, path: Path, opened: contextlib.AsyncExitStack) -> "SqliteCatalog":
        writer = await _connect_writer(path)
        opened.push_async_callback(writer.end)
        await _migrate(writer, path)
        return cls(path, await _connect(path, "ro"), False, writer)

    @classmethod
    async def _open_read_only(cls, path: Path, opened: contextlib.AsyncExitStack) -> "SqliteCatalog":
        if not path.exists():
            raise UnusableFolder(f"there is no catalog at {path}; name the data folder with --data")
        copy = None
        try:
            reader = await _connect(path, "ro")
        except sqlite3.Error as error:
            if primary_code(error) not in NO_SHARED_MEMORY:
                raise
            copy = private_copy(path)
            opened.callback(copy.cleanup)
            reader = await _connect(private_copy_path(copy), "rw")
        opened.push_async_callback(reader.end)
        version = await _version(reader, path)
        if version < VERSION:
            raise UnusableFolder(
                f"the catalog {path} is of version {version}, this Sojourn reads version {VERSION}; "
                "`sojourn serve` on the folder brings it up to date"
            )
        return cls(path, reader, True, None, copy)

    async def put(self, rows: Sequence[CatalogRow]) -> None:
        if self._closed:
            raise NotOpen
        if self._read_only:
            raise UnusableFolder(f"the catalog {self._path} was opened to be read only")
        await self._carried_out(self._put([_to_sql(row) for row in rows]))

    async def get(self, session_id: str) -> CatalogRow | None:
        rows = await self._select(f"SELECT {_COLUMNS} FROM session WHERE session_id = ?", (session_id,))
        return _from_sql(rows[0]) if rows else None

    async def page(self, query: CatalogQuery) -> list[CatalogRow]:
        return [_from_sql(row) for row in await self._select(*_page_sql(query))]

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
        with anyio.CancelScope(shield=True):
            while self._under_way:  # puts whose callers have gone
                await asyncio.wait(self._under_way)
            await self._reader.end()
            if self._writer is not None:
                await self._writer.end()
            if self._copy is not None:
                self._copy.cleanup()

    async def _carried_out(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result; goes on when the caller is cancelled."""
        task = asyncio.ensure_future(work)
        self._under_way.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def _put(self, rows: list[tuple[Any, ...]]) -> None:
        async with self._writing:
            try:
                if self._writer is None:
                    self._writer = await _connect_writer(self._path)
                await self._writer.execute_fetchall("BEGIN IMMEDIATE")
                await self._writer.executemany(_PUT, rows)
                await self._writer.execute_fetchall("COMMIT")
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


async def _migrate(connection: aiosqlite.Connection, path: Path) -> None:
    """Each step is a transaction with its version, so a migration that was killed goes on where it stood."""
    for version in range(await _version(connection, path), VERSION):
        script = f"BEGIN IMMEDIATE; {MIGRATIONS[version]}; PRAGMA user_version = {version + 1}; COMMIT;"
        await connection.executescript(script)


def _page_sql(query: CatalogQuery) -> tuple[str, tuple[Any, ...]]:
    """The statement and its values. By status it takes a page of each status by the index and merges them: a rare
    status is then found without walking all rows. Only these fragments ever become SQL; what the query holds is bound."""
    conditions, values = [], []
    if query.before is not None:
        conditions.append("(created_at, session_id) < (?, ?)")
        values += [_microseconds(query.before[0]), query.before[1]]
    if query.plan is not None:
        conditions.append("plan = ?")
        values.append(query.plan)
    order = "ORDER BY created_at DESC, session_id DESC LIMIT ?"
    if query.status is None:
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        return f"SELECT {_COLUMNS} FROM session {where} {order}", (*values, query.limit)
    where = " AND ".join((*conditions, "status = ?"))
    pages = [f"SELECT * FROM (SELECT {_COLUMNS} FROM session WHERE {where} {order})" for _ in query.status]
    bound = [value for status in query.status for value in (*values, status, query.limit)]
    if not pages:
        return f"SELECT {_COLUMNS} FROM session WHERE 0", ()
    return f"{' UNION ALL '.join(pages)} {order}", (*bound, query.limit)


def _to_sql(row: CatalogRow) -> tuple[Any, ...]:
    return (
        row.session_id,
        row.seq,
        row.epoch,
        row.tier,
        row.status,
        row.outcome,
        row.plan,
        row.title,
        row.user_id,
        _microseconds(row.created_at),
        _microseconds(row.updated_at),
        row.record,
    )


def _from_sql(values: tuple[Any, ...]) -> CatalogRow:
    session_id, seq, epoch, tier, status, outcome, plan, title, user_id, created_at, updated_at, record = (
        values
    )
    return CatalogRow(
        session_id=session_id,
        seq=seq,
        epoch=epoch,
        tier=tier,
        status=status,
        outcome=outcome,
        plan=plan,
        title=title,
        user_id=user_id,
        created_at=_EPOCH + created_at * _MICROSECOND,
        updated_at=_EPOCH + updated_at * _MICROSECOND,
        record=record,
    )


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _translated(path: Path, error: sqlite3.Error) -> StoreError:
    if primary_code(error) == sqlite3.SQLITE_FULL:
        return StorageFull(f"no room for the catalog {path}; nothing was written, free some space")
    if primary_code(error) in UNREADABLE:
        return Damaged(
            f"the catalog {path} cannot be read ({error}); move it and its -wal and -shm files aside: it is built anew "
            "from the journal and the manifests when the folder is next opened"
        )
    return StoreUnavailable(f"the catalog {path} failed ({error}); putting the same rows again is safe")
