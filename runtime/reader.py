"""Reads a data folder without owning it: what `sojourn ls` does when no server runs.

It takes no lock, raises no epoch and changes no file, so it works beside an owner, after one was killed, and in a
folder that cannot be written. What it knows of the journal stood there when it was opened or last refreshed.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import structlog

from ..actors.errors import Damaged, Missing, NoSuchSession, UnusableFolder
from ..actors.ports import Catalog, CatalogQuery, CatalogRow, Objects
from ..actors.session.actor import ReplayFailure
from ..actors.session.codec import public_state
from ..actors.session.model import Limits
from ..actors.session.poison import Ledger
from ..actors.session.record import complete_record, decode_record, public_record
from .event_log import EventLog
from .layout import snapshot_path
from .live import Line, lines_of
from .projector import catalog_row, merged_page, place
from .quarantine import documents, quarantined_document
from .rebuild import Rederiver, open_checked, write_rows
from .recovery import History, Recovered, Recovery
from .shelves import Shelves
from .stores.archive import archive_to_read
from .stores.journal_sqlite import SqliteJournal
from .stores.lock import check_format, owner_pid
from .stores.memory import MemoryCatalog
from .stores.objects_folder import FolderObjects

log = structlog.get_logger("sojourn.reader")

EVENTS_BYTES_A_READ = 1024 * 1024


class Reader:
    """The reading side of a runtime, on files alone. Opened by `open`; runs on asyncio.

    A session is `lost` here when it has not ended and no process owns the folder: signs of life are in the owner's
    memory, so with a live owner this cannot tell more.
    """

    def __init__(
        self,
        data_dir: Path,
        journal: SqliteJournal,
        catalog: Catalog | None,
        recent: Objects,
        archive: Objects,
    ) -> None:
        self._data_dir = data_dir
        self._journal = journal
        self._catalog = catalog
        shelves = Shelves(journal=journal, catalog=catalog, recent=recent, archive=archive)
        event_log = EventLog(journal, shelves)
        self._behind: dict[str, int] = {}
        self._recovery = Recovery(
            journal=journal,
            event_log=event_log,
            shelves=shelves,
            limits=Limits(),
            known_heads=self._behind,
        )
        self._history = History(event_log, self._recovery)
        self._ahead: dict[str, CatalogRow] = {}
        self._last: Recovered | None = None
        self._ledger = Ledger()
        self._unreplayable: dict[str, ReplayFailure] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls, data_dir: Path, *, archive: str | None = None) -> AsyncIterator[Self]:
        """A reader of `data_dir`, closed on exit.

        Args:
            archive: as in the settings.

        Raises:
            UnusableFolder: there is no such folder, or it holds no sessions, or a newer format.
            Damaged, StoreUnavailable: the journal cannot be read at all.
        """
        other = "record one with `sojourn record -- COMMAND`, or name another folder with --data"
        if not data_dir.is_dir():
            raise UnusableFolder(f"there is no data folder {data_dir}; {other}")
        check_format(data_dir)
        journal_path, catalog_path = data_dir / "journal.db", data_dir / "catalog.db"
        if not journal_path.exists():
            raise UnusableFolder(f"the data folder {data_dir} holds no sessions; {other}")
        async with AsyncExitStack() as stack:
            journal = await SqliteJournal.open(journal_path, read_only=True)
            stack.push_async_callback(journal.close)
            archived = await stack.enter_async_context(archive_to_read(archive, data_dir))
            catalog: Catalog | None = None
            # The catalog is a projection: where it is gone or damaged, journal and manifests tell the same, more slowly.
            recent = FolderObjects(data_dir)
            stack.push_async_callback(recent.close)
            if catalog_path.exists():
                try:
                    rederive = Rederiver(journal, recent, archived)
                    catalog = await open_checked(catalog_path, rederive, read_only=True)
                    stack.push_async_callback(catalog.close)
                except Damaged as error:
                    log.error(
                        "catalog.damaged",
                        error=str(error),
                        remedy="journal and manifests are read instead; the next owner builds it anew",
                    )
            if catalog is None:
                catalog = MemoryCatalog()
                await write_rows(catalog, journal=journal, recent=recent, archive=archived, with_active=False)
            reader = cls(data_dir, journal, catalog, recent, archived)
            await reader._read_marks()
            yield reader

    async def refresh(self) -> None:
        """Take in what was committed since."""
        await self._journal.refresh()
        await self._read_marks()

    async def _read_marks(self) -> None:
        self._ledger = Ledger()
        for mark in await self._journal.marks():
            with suppress(Damaged):  # of a newer version, which can tell more
                self._ledger.put(mark)

    def _note(self, recovered: Recovered) -> None:
        if recovered.failure is not None:
            self._unreplayable[recovered.state.session_id] = recovered.failure
        else:
            self._unreplayable.pop(recovered.state.session_id, None)

    def quarantined(self) -> list[dict[str, Any]]:
        """What is set aside, of all sessions, as it is listed."""
        return [
            item
            for session_id, account in sorted(self._ledger.accounts.items())
            for item in documents(session_id, account)
        ]

    async def record(self, session_id: str) -> dict[str, Any]:
        """The public record. Raises NoSuchSession, Damaged."""
        row = await self._catalog.get(session_id) if self._catalog is not None else None
        head = self._journal.heads().get(session_id)
        if row is not None and (head is None or row.seq == head):
            return self._complete(decode_record(row.record))
        if row is not None and row.seq > (head or 0):
            self._behind[session_id] = row.seq  # the journal has lost its end
        recovered = await self._recover(session_id)
        self._note(recovered)
        return self._complete(_public(recovered), recovered.missing)

    async def state(self, session_id: str) -> tuple[int, bytes]:
        """Seq and state, as canonical JSON. Raises NoSuchSession, Damaged."""
        state = (await self._recover(session_id)).state
        return state.seq, public_state(state)

    async def events(self, session_id: str, *, after: int = 0) -> AsyncIterator[Line]:
        """The events above `after` that are there. Raises NoSuchSession, Damaged."""
        head = await self._history.head(session_id)
        if head == 0:
            raise NoSuchSession(session_id)
        while after < head:
            records = await self._history.read(session_id, after, bytes_max=EVENTS_BYTES_A_READ)
            if not records:
                raise Missing(session_id, after + 1, head)
            for record in records:
                for line in lines_of(record, after):
                    yield line
            after = records[-1].last_seq

    async def page(self, query: CatalogQuery) -> list[dict[str, Any]]:
        """Public records, newest first (`Catalog.page`), at what the journal says where the catalog is behind it."""
        return [record for _, record in await self._page(query)]

    async def walk(self, query: CatalogQuery) -> AsyncIterator[dict[str, Any]]:
        """All pages, one after the other; `query.limit` is the size of each."""
        before = query.before
        while True:
            page = await self._page(
                CatalogQuery(limit=query.limit, before=before, plan=query.plan, status=query.status)
            )
            for _, record in page:
                yield record
            if len(page) < query.limit:
                return
            before = page[-1][0]

    async def _page(self, query: CatalogQuery) -> list[tuple[tuple[datetime, str], dict[str, Any]]]:
        rows = await merged_page(self._catalog, query, await self._rows_ahead())
        return [(place(row), self._complete(decode_record(row.record))) for row in rows]

    async def _rows_ahead(self) -> dict[str, CatalogRow]:
        """The rows of sessions whose journal is ahead of the catalog: the last seconds of a live owner, or of one
        that was killed."""
        listed = await self._catalog.heads() if self._catalog is not None else {}
        ahead: dict[str, CatalogRow] = {}
        for session_id, head in self._journal.heads().items():
            if listed.get(session_id, 0) >= head:
                continue
            row = self._ahead.get(session_id)
            if row is None or row.seq < head:
                try:
                    recovered = await self._recover(session_id)
                    self._note(recovered)
                    row = catalog_row(_public(recovered))
                except Damaged as error:
                    # The others are listed all the same; this one as the catalog has it, if it does.
                    log.warning(
                        "session.damaged",
                        session=session_id,
                        error=str(error),
                        remedy="the others are listed; `sojourn doctor` says what is damaged",
                    )
                    continue
            ahead[session_id] = row
        self._ahead = ahead
        return ahead

    async def _recover(self, session_id: str) -> Recovered:
        # The last one is kept, for whoever asks for record and state: folding 100,000 events takes seconds.
        last = self._last
        head = self._journal.heads().get(session_id, 0)
        if last is None or last.missing or last.state.session_id != session_id or last.state.seq < head:
            self._last = None  # or two states would be held at once
            last = await self._recovery.recover(session_id)
            if last.state.header is None:
                raise NoSuchSession(session_id)
            self._last = last
        return last

    def _complete(self, record: dict[str, Any], missing: tuple[int, int] | None = None) -> dict[str, Any]:
        return complete_record(
            record,
            missing=missing,
            quarantined=quarantined_document(
                self._ledger.hold(record["session_id"]), self._unreplayable.get(record["session_id"])
            ),
            now=datetime.now(UTC),
            last_sign_at=None,
            owner_alive=owner_pid(self._data_dir) is not None,
        )


def _public(recovered: Recovered) -> dict[str, Any]:
    state = recovered.state
    path = snapshot_path(state.session_id, recovered.snapshot_seq)
    return public_record(state, epoch=recovered.epoch, snapshot_path=path)
