"""Stores that keep everything in memory: for tests, for simulation, and to show what the ports ask for, plainly.

They hold to the same contracts as the real ones. Every method gives way to other tasks once, before it does anything.
"""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime

from anyio.lowlevel import checkpoint
from attrs import define, field

from ...actors.errors import NotOpen, ObjectExists, ObjectMissing, StaleEpoch
from ...actors.ports import (
    TIERS,
    CatalogQuery,
    CatalogRow,
    JournalStatistics,
    MirrorAnswer,
    MirrorClaim,
    MirrorHead,
    MirrorUpdate,
    Record,
    RecordKind,
    Resting,
)
from ..verified import put_one_by_one
from .mirror_keys import check_update
from .object_names import check_name, check_prefix


@define
class _Row:
    """One append: what it took, and the records in it that were not released."""

    size_bytes: int
    records: list[Record]


class MemoryJournal:
    """`Journal` in memory. A row is as large as its payloads."""

    def __init__(self) -> None:
        self._epoch = 0
        self._rows: list[_Row] = []
        self._sessions: dict[str, list[Record]] = {}
        self._heads: dict[str, int] = {}
        self._released: dict[str, int] = {}
        self._marks: dict[tuple[str, int], Record] = {}
        self._commits = 0
        self._freed_bytes = 0
        self._closed = False

    @property
    def epoch(self) -> int:
        return self._epoch

    def heads(self) -> Mapping[str, int]:
        return self._heads

    def pending_bytes(self, session_id: str, after_seq: int) -> int:
        return sum(len(record.payload) for record in self._above(session_id, after_seq))

    @property
    def size_bytes(self) -> int:
        return sum(row.size_bytes for row in self._rows)

    @property
    def freed_bytes(self) -> int:
        return self._freed_bytes

    def epoch_of(self, session_id: str) -> int:
        records = self._sessions.get(session_id)
        return records[-1].epoch if records else 0

    def released(self, session_id: str) -> int:
        return self._released.get(session_id, 0)

    async def oldest_sparing(
        self, size_bytes: int, spare_bytes: int, rest: Callable[[], Awaitable[None]]
    ) -> dict[str, int]:
        await rest()
        return self.oldest(size_bytes)  # nothing of it costs anything here

    def oldest(self, size_bytes: int) -> dict[str, int]:
        found, held = dict[str, int](), 0
        for row in self._rows[:-1]:
            if held >= size_bytes:
                break
            held += row.size_bytes
            found.update({record.session_id: record.last_seq for record in row.records})
        return found

    async def append(self, records: Sequence[Record]) -> None:
        await self._begin()
        if not records:
            return
        epoch, ahead = self._epoch, dict[str, int]()
        for record in records:
            if record.epoch < epoch:
                raise StaleEpoch(
                    f"epoch {record.epoch} is fenced: the journal is at {epoch}; stop this process"
                )
            epoch = record.epoch
            if record.kind is RecordKind.EVENTS:
                last_seq = ahead.get(record.session_id, self._heads.get(record.session_id))
                if (
                    record.count < 1
                    or record.first_seq < 1
                    or record.first_seq != (last_seq or record.first_seq - 1) + 1
                ):
                    raise ValueError(
                        f"session {record.session_id}: seq {record.first_seq} does not follow {last_seq}"
                    )
                ahead[record.session_id] = record.last_seq
        events = [record for record in records if record.kind is RecordKind.EVENTS]
        for record in events:
            self._sessions.setdefault(record.session_id, []).append(record)
        in_rows = [record for record in records if record.kind <= RecordKind.EPOCH]
        if in_rows:
            self._rows.append(_Row(sum(len(record.payload) for record in in_rows), events))
        for mark in records:
            if mark.kind is RecordKind.RELEASE:
                self._marks.pop((mark.session_id, mark.first_seq), None)
            elif mark.kind > RecordKind.EPOCH:
                self._marks[mark.session_id, mark.first_seq] = mark
        self._epoch = epoch
        self._heads.update(ahead)
        self._commits += 1

    async def read(
        self, session_id: str, after_seq: int = 0, *, bytes_max: int | None = None
    ) -> list[Record]:
        await self._begin()
        records = self._above(session_id, after_seq)
        sizes = itertools.accumulate(len(record.payload) for record in records)
        enough = (count for count, size in enumerate(sizes, 1) if bytes_max is not None and size >= bytes_max)
        return records[: next(enough, len(records))]

    async def read_several(
        self, after: Mapping[str, int], upto: Mapping[str, int] | None = None, rest: Resting | None = None
    ) -> Mapping[str, Sequence[Record]]:
        await self._begin()
        found = {session_id: self._above(session_id, seq) for session_id, seq in after.items()}
        if upto is None:
            return found
        return {
            session_id: [record for record in records if record.first_seq <= upto[session_id]]
            for session_id, records in found.items()
        }

    async def marks(self) -> list[Record]:
        await self._begin()
        return [self._marks[key] for key in sorted(self._marks)]

    async def release(self, upto: Mapping[str, int], rest: Resting | None = None) -> None:
        await self._begin()
        upto = {session_id: seq for session_id, seq in upto.items() if seq > self.released(session_id)}
        self._released.update(upto)
        for session_id, seq in upto.items():
            self._sessions[session_id] = self._above(session_id, seq)
            self._heads[session_id] = max(seq, self._heads.get(session_id, 0))
        self._let_go(upto)

    async def forget(self, session_ids: Collection[str]) -> None:
        await self._begin()
        upto = {
            session_id: self._heads[session_id] for session_id in session_ids if session_id in self._heads
        }
        for session_id in upto:
            for kept in (self._sessions, self._released, self._heads):
                kept.pop(session_id, None)
        self._let_go(upto)

    def _let_go(self, upto: Mapping[str, int]) -> None:
        for row in self._rows:
            row.records = [
                record for record in row.records if record.last_seq > upto.get(record.session_id, 0)
            ]
        held = self.size_bytes
        self._rows = [row for row in self._rows[:-1] if row.records] + self._rows[-1:]
        self._freed_bytes += held - self.size_bytes

    def statistics(self) -> JournalStatistics:
        records = [record for session in self._sessions.values() for record in session]
        return JournalStatistics(
            sessions=len(self._heads),
            records=len(records),
            events=sum(record.count for record in records),
            payload_bytes=sum(len(record.payload) for record in records),
            commits=self._commits,
            damaged=0,
            size_bytes=self.size_bytes,
        )

    async def close(self) -> None:
        await checkpoint()
        self._closed = True

    async def _begin(self) -> None:
        await checkpoint()
        if self._closed:
            raise NotOpen

    def _above(self, session_id: str, after_seq: int) -> list[Record]:
        return [record for record in self._sessions.get(session_id, ()) if record.last_seq > after_seq]


class MemoryCatalog:
    """`Catalog` in memory."""

    def __init__(self) -> None:
        self._rows: dict[str, CatalogRow] = {}
        self._closed = False

    async def put(self, rows: Sequence[CatalogRow]) -> None:
        await self._begin()
        for row in rows:
            stands = self._rows.get(row.session_id)
            if stands is None or (
                TIERS.index(row.tier) >= TIERS.index(stands.tier)
                and (row.epoch, row.seq) >= (stands.epoch, stands.seq)
            ):
                self._rows[row.session_id] = row

    async def switch(self, row: CatalogRow, *, from_tier: str) -> bool:
        await self._begin()
        stands = self._rows.get(row.session_id)
        if stands is not None and (stands.tier, stands.seq) == (from_tier, row.seq):
            self._rows[row.session_id] = row
        return self._rows.get(row.session_id) == row

    async def in_tier(self, tier: str, *, updated_before: datetime, limit: int) -> list[str]:
        await self._begin()
        found = [row for row in self._rows.values() if row.tier == tier and row.updated_at < updated_before]
        return [
            row.session_id for row in sorted(found, key=lambda row: (row.updated_at, row.session_id))[:limit]
        ]

    async def due(
        self, *, before: datetime, after: tuple[datetime, str] | None, limit: int
    ) -> list[tuple[datetime, str]]:
        await self._begin()
        found = [
            (row.next_due_at, row.session_id)
            for row in self._rows.values()
            if row.next_due_at is not None and row.next_due_at < before
        ]
        return sorted(place for place in found if after is None or place > after)[:limit]

    async def get(self, session_id: str) -> CatalogRow | None:
        await self._begin()
        return self._rows.get(session_id)

    async def page(self, query: CatalogQuery) -> list[CatalogRow]:
        await self._begin()
        rows = [
            row
            for row in self._rows.values()
            if (query.before is None or _place(row) < query.before)
            and (query.plan is None or row.plan == query.plan)
            and (query.status is None or row.status in query.status)
            and (query.tier is None or row.tier in query.tier)
        ]
        return sorted(rows, key=_place, reverse=True)[: query.limit]

    async def heads(self) -> dict[str, int]:
        await self._begin()
        return {row.session_id: row.seq for row in self._rows.values()}

    async def epoch(self) -> int:
        await self._begin()
        return max((row.epoch for row in self._rows.values()), default=0)

    async def close(self) -> None:
        await checkpoint()
        self._closed = True

    async def _begin(self) -> None:
        await checkpoint()
        if self._closed:
            raise NotOpen


def _place(row: CatalogRow) -> tuple[datetime, str]:
    return row.created_at, row.session_id


class MemoryObjects:
    """`Objects` in memory."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}

    async def put(self, name: str, data: bytes, *, create_only: bool = False) -> None:
        check_name(name)
        await checkpoint()
        if create_only and name in self._objects:
            raise ObjectExists(f"there is an object {name} already; nothing was written")
        self._objects[name] = data

    async def put_all(self, objects: Sequence[tuple[str, bytes]]) -> None:
        await put_one_by_one(self, objects)

    async def get(self, name: str) -> bytes:
        check_name(name)
        await checkpoint()
        try:
            return self._objects[name]
        except KeyError:
            raise ObjectMissing(f"there is no object {name}") from None

    async def list(self, prefix: str) -> AsyncIterator[str]:
        start = check_prefix(prefix)
        await checkpoint()
        for name in sorted(self._objects):
            if name.startswith(start):
                yield name

    async def delete(self, name: str) -> None:
        check_name(name)
        await checkpoint()
        self._objects.pop(name, None)


@define
class _Mirrored:
    epoch: int
    seq: int
    documents: dict[str, bytes] = field(factory=dict)
    events: list[tuple[int, bytes]] = field(factory=list)


class MemoryMirror:
    """`Mirror` in memory. `lose` forgets sessions, as a server does that lost its data. That a session was removed is
    remembered for good."""

    def __init__(self) -> None:
        self._sessions: dict[str, _Mirrored] = {}
        self._removed: dict[str, int] = {}  # by which epoch
        self._claimed: tuple[str, int] | None = None  # for good
        self._closed = False

    @property
    def description(self) -> str:
        return "memory"

    @property
    def is_local(self) -> bool:
        return True

    async def claim(self, owner: str, epoch: int) -> MirrorClaim:
        await self._begin()
        answer = MirrorAnswer.GAP
        if self._claimed is not None:
            held, highest = self._claimed
            if held != owner:
                return MirrorClaim(answer=MirrorAnswer.FOREIGN, owner=held)
            if epoch < highest:
                return MirrorClaim(answer=MirrorAnswer.FENCED, owner=owner)
            if epoch == highest:
                answer = MirrorAnswer.OK
        self._claimed = (owner, epoch)
        return MirrorClaim(answer=answer, owner=owner)

    async def epoch(self) -> int:
        await self._begin()
        if self._claimed is not None:
            return self._claimed[1]
        return max((session.epoch for session in self._sessions.values()), default=0)

    async def apply(self, batch: Sequence[MirrorUpdate]) -> list[MirrorAnswer]:
        for update in batch:
            check_update(update)
        await self._begin()
        return [self._apply(update) for update in batch]

    async def head(self, session_id: str) -> MirrorHead | None:
        await self._begin()
        session = self._sessions.get(session_id)
        return None if session is None else MirrorHead(epoch=session.epoch, seq=session.seq)

    async def heads(self) -> dict[str, MirrorHead]:
        await self._begin()
        return {
            session_id: MirrorHead(epoch=session.epoch, seq=session.seq)
            for session_id, session in self._sessions.items()
        }

    async def documents(self, session_id: str) -> dict[str, bytes]:
        await self._begin()
        session = self._sessions.get(session_id)
        return {} if session is None else dict(session.documents)

    async def events(self, session_id: str, after_seq: int = 0) -> list[tuple[int, bytes]]:
        await self._begin()
        session = self._sessions.get(session_id)
        return [] if session is None else [(seq, event) for seq, event in session.events if seq > after_seq]

    async def trim(self, session_id: str, epoch: int, upto_seq: int) -> MirrorAnswer:
        await self._begin()
        session = self._sessions.get(session_id)
        if session is not None:
            if session.epoch > epoch:
                return MirrorAnswer.FENCED
            session.events = [(seq, event) for seq, event in session.events if seq > upto_seq]
        return MirrorAnswer.OK

    async def remove(self, session_id: str, epoch: int, tier: str = "recent") -> MirrorAnswer:
        await self._begin()
        session = self._sessions.get(session_id)
        if epoch < (self._removed.get(session_id, 0) if session is None else session.epoch):
            return MirrorAnswer.FENCED
        if self._sessions.pop(session_id, None) is not None:
            self._removed[session_id] = epoch
        return MirrorAnswer.OK

    async def close(self) -> None:
        await checkpoint()
        self._closed = True

    def lose(self, *session_ids: str) -> None:
        if not session_ids:
            self._claimed = None
        for session_id in session_ids or {*self._sessions, *self._removed}:
            self._sessions.pop(session_id, None)
            self._removed.pop(session_id, None)

    def _apply(self, update: MirrorUpdate) -> MirrorAnswer:
        session = self._sessions.get(update.session_id)
        if session is not None:
            if update.epoch < session.epoch and not update.force:
                return MirrorAnswer.FENCED
            # What a former owner sent last may never have become part of this one's history: that is a gap, no double.
            if not update.whole and (update.epoch, update.last_seq) == (session.epoch, session.seq):
                return MirrorAnswer.DUP
        elif update.epoch < self._removed.get(update.session_id, 0) and not update.force:
            return MirrorAnswer.FENCED
        if not update.whole and update.first_seq != (session.seq if session is not None else 0) + 1:
            return MirrorAnswer.GAP
        if update.whole or session is None:
            session = self._sessions[update.session_id] = _Mirrored(update.epoch, 0)
            self._removed.pop(update.session_id, None)
        session.epoch, session.seq = update.epoch, update.last_seq
        session.events += enumerate(update.events, update.last_seq - len(update.events) + 1)
        for name, document in update.documents.items():
            if document is None:
                session.documents.pop(name, None)
            else:
                session.documents[name] = document
        return MirrorAnswer.OK

    async def _begin(self) -> None:
        await checkpoint()
        if self._closed:
            raise NotOpen
