"""The ports over a simulated disk: each call of theirs is an operation of a mount, and the oracle is told what was done."""

import copy
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime

import anyio

from sojourn.actors.errors import StoreError
from sojourn.actors.ports import (
    TIERS,
    CatalogQuery,
    CatalogRow,
    JournalStatistics,
    Mirror,
    MirrorAnswer,
    MirrorClaim,
    MirrorHead,
    MirrorUpdate,
    Record,
    Resting,
)
from sojourn.runtime.opening import Stores
from sojourn.runtime.stores.memory import MemoryJournal
from sojourn.runtime.verified import put_one_by_one

from .disk import Mount, phase_of_caller
from .oracle import objects_of
from .profile import log_uniform
from .rot import MENDED_S, RottingObjects, costs_nothing, has_ended, kind_of, session_of

MOVING = ("archive", "facts", "hand-off", "look")  # those who have a session's objects to themselves
MOVED_S_MAX = 20.0


def stores_of(mount: Mount) -> Stores:
    """As one process sees them."""
    disk = mount.disk
    return Stores(
        journal=SimJournal(mount),
        catalog=SimCatalog(mount),
        objects=SimObjects(mount, disk.recent, "recent"),
        archive=SimObjects(mount, disk.archive, "archive"),
        mirror=SimPlace(mount) if disk.profile.mirror else None,  # type: ignore[arg-type]
    )


class SimJournal:
    """See ports.Journal."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._disk = mount.disk
        self._lane = anyio.Lock()

    @property
    def _inner(self) -> MemoryJournal:
        return self._mount.journal

    @property
    def epoch(self) -> int:
        return self._inner.epoch

    def heads(self) -> Mapping[str, int]:
        return self._inner.heads()

    def pending_bytes(self, session_id: str, after_seq: int) -> int:
        return self._inner.pending_bytes(session_id, after_seq)

    @property
    def size_bytes(self) -> int:
        return self._inner.size_bytes

    @property
    def freed_bytes(self) -> int:
        return self._inner.freed_bytes

    def epoch_of(self, session_id: str) -> int:
        return self._inner.epoch_of(session_id)

    def released(self, session_id: str) -> int:
        return self._inner.released(session_id)

    def oldest(self, size_bytes: int) -> dict[str, int]:
        return self._inner.oldest(size_bytes)

    async def oldest_sparing(
        self, size_bytes: int, spare_bytes: int, rest: Callable[[], Awaitable[None]]
    ) -> dict[str, int]:
        return await self._inner.oldest_sparing(size_bytes, spare_bytes, rest)

    async def append(self, records: Sequence[Record]) -> None:
        records = list(records)

        async def append() -> None:
            self._mount.fenced()
            await self._inner.append(records)
            self._disk.oracle.appended(records, self._mount)
            self._mount.events += sum(record.count for record in records)

        seals = any(b'"session.sealed"' in record.payload for record in records)
        await self._mount.write("journal", "append", append, lane=self._lane, seals=seals)

    async def read(
        self, session_id: str, after_seq: int = 0, *, bytes_max: int | None = None
    ) -> list[Record]:
        async with self._lane:  # one thread owns it
            return await self._mount.read(
                "journal", "read", lambda: self._inner.read(session_id, after_seq, bytes_max=bytes_max)
            )

    async def read_several(
        self, after: Mapping[str, int], upto: Mapping[str, int] | None = None, rest: Resting | None = None
    ) -> Mapping[str, Sequence[Record]]:
        async with self._lane:
            found = await self._mount.read(
                "journal", "read several", lambda: self._inner.read_several(after, upto)
            )
        if rest is not None:
            await rest()
        return found

    async def marks(self) -> list[Record]:
        async with self._lane:
            return await self._mount.read("journal", "marks", self._inner.marks)

    async def release(self, upto: Mapping[str, int], rest: Resting | None = None) -> None:
        # Asked, not seen by what it changes: up to seq 0 it changes nothing, and who asks has looked at what is not his.
        gone = sorted(upto.keys() - self._inner.heads().keys())
        self._disk.oracle.must(not gone, "I8", f"{gone} were handed over, and are to be released")

        async def release(share: float = 1.0) -> None:
            self._mount.fenced()
            some = dict(list(upto.items())[: round(share * len(upto))])
            for session_id, seq in some.items():
                self._disk.oracle.releases(self._disk, session_id, seq)
            cared_for = set(self._inner.heads())
            await self._inner.release(some)
            again = sorted(self._inner.heads().keys() - cared_for)
            self._disk.oracle.must(not again, "I8", f"{again} were handed over, and are released as if not")
            self._disk.oracle.copies_left(self._disk, some)

        await self._mount.write("journal", "release", release, lane=self._lane, in_part=release)
        if rest is not None:
            await rest()

    async def forget(self, session_ids: Collection[str]) -> None:
        async def forget(share: float = 1.0) -> None:
            self._mount.fenced()
            some = list(session_ids)[: round(share * len(session_ids))]
            await self._inner.forget(some)
            self._disk.oracle.copies_left(self._disk, some)

        await self._mount.write("journal", "forget", forget, lane=self._lane, in_part=forget)

    def statistics(self) -> JournalStatistics:
        return self._inner.statistics()

    async def close(self) -> None:
        await self._inner.close()


class SimCatalog:
    """See ports.Catalog."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._disk = mount.disk
        self._inner = mount.disk.catalog
        self._lane = anyio.Lock()

    async def put(self, rows: Sequence[CatalogRow]) -> None:
        async def put() -> None:
            before = {row.session_id: self._inner._rows.get(row.session_id) for row in rows}
            await self._inner.put(rows)
            if any(row.tier != "active" for row in rows):
                self._disk.unsynced.clear()
            else:
                self._disk.unsynced.append(before)
            self._told(rows)

        await self._mount.write("catalog", "put", put, lane=self._lane)

    async def switch(self, row: CatalogRow, *, from_tier: str) -> bool:
        async def switch() -> bool:
            switched = await self._inner.switch(row, from_tier=from_tier)
            self._disk.unsynced.clear()
            if switched:
                self._told([row])
            return switched

        return await self._mount.write("catalog", "switch", switch, lane=self._lane)

    def _told(self, rows: Sequence[CatalogRow]) -> None:
        for row in rows:
            stands = self._inner._rows.get(row.session_id)
            if stands is not None:
                self._disk.oracle.listed(stands, self._disk)

    async def in_tier(self, tier: str, *, updated_before: datetime, limit: int) -> list[str]:
        return await self._mount.read(
            "catalog",
            "in_tier",
            lambda: self._inner.in_tier(tier, updated_before=updated_before, limit=limit),
        )

    async def due(
        self, *, before: datetime, after: tuple[datetime, str] | None, limit: int
    ) -> list[tuple[datetime, str]]:
        return await self._mount.read(
            "catalog", "due", lambda: self._inner.due(before=before, after=after, limit=limit)
        )

    async def get(self, session_id: str) -> CatalogRow | None:
        return await self._mount.read("catalog", "get", lambda: self._inner.get(session_id))

    async def page(self, query: CatalogQuery) -> list[CatalogRow]:
        return await self._mount.read("catalog", "page", lambda: self._inner.page(query))

    async def heads(self) -> dict[str, int]:
        return await self._mount.read("catalog", "heads", self._inner.heads)

    async def epoch(self) -> int:
        return await self._mount.read("catalog", "epoch", self._inner.epoch)

    async def close(self) -> None:
        await self._inner.close()


class SimObjects:
    """See ports.Objects."""

    def __init__(self, mount: Mount, inner: RottingObjects, store: str) -> None:
        self._mount = mount
        self._disk = mount.disk
        self._inner = inner
        self._store = store

    async def put(self, name: str, data: bytes, *, create_only: bool = False) -> None:
        disk = self._disk

        async def put() -> None:
            disk.oracle.writes(name)
            if disk.draws("garbled", phase):
                self._mount.occurs("garbled", phase)
                garbled = data[: len(data) // 2]
                await self._inner.put(name, garbled, create_only=create_only)
                return
            await self._inner.put(name, data, create_only=create_only)
            disk.oracle.stored(self._store, name, data)

        phase = phase_of_caller()
        if self._store == "recent" and self._mount.behind is None:
            disk.oracle.belongs_here(disk, name)
        await self._alone(name, "put", put)

    async def put_all(self, objects: Sequence[tuple[str, bytes]]) -> None:
        await put_one_by_one(self, objects)

    async def get(self, name: str) -> bytes:
        if self._disk.draws("rot"):
            self._rot(phase_of_caller())
        await self._outlasts_its_move(name)
        return await self._mount.read(self._store, "get", lambda: self._inner.get(name))

    def _rot(self, phase: str) -> None:
        disk, objects = self._disk, self._inner
        snapshots, ended = costs_nothing(disk.oracle, objects), has_ended(disk.oracle, objects)
        if snapshots and (not ended or disk.rng.random() < 0.3):
            self._mount.occurs("rot", phase)
            objects.turn(disk.rng.choice(snapshots), disk.rng)
        elif ended:
            name = disk.rng.choice(ended)
            self._mount.occurs("rot", phase, kind_of(name) if self._store == "recent" else "archived")
            disk.harmed.add(name.split("/")[2])
            mended_at = anyio.current_time() + log_uniform(disk.rng, *MENDED_S)
            objects.turn_for_a_while(name, disk.rng, mended_at)

    async def _outlasts_its_move(self, name: str) -> None:
        """A read of what is recent may take as long as its archiving: it began where the session was, and ends where nothing
        is. Whoever moves it would wait for itself."""
        oracle, session_id = self._disk.oracle, session_of(name)
        if self._store != "recent" or oracle.of(session_id).tier != TIERS[1]:
            return
        if self._disk.draws("outlasted") and (phase := phase_of_caller()) not in MOVING:
            self._mount.occurs("outlasted", phase)
            with anyio.move_on_after(MOVED_S_MAX):
                while objects_of(self._disk.recent, session_id) and self._mount.death is None:
                    await anyio.sleep(0.5)
                await anyio.sleep(0.5)  # until whoever moved it has let go of it

    async def list(self, prefix: str) -> AsyncIterator[str]:
        async def names() -> list[str]:
            return [name async for name in self._inner.list(prefix)]

        for name in await self._mount.read(self._store, "list", names):
            yield name

    async def delete(self, name: str) -> None:
        async def delete() -> None:
            await self._inner.delete(name)
            self._disk.oracle.deleted(self._disk, name)

        await self._alone(name, "delete", delete)

    async def _alone(self, name: str, verb: str, change: Callable[[], Awaitable[None]]) -> None:
        """One task at a time may change the objects of a session. What a caller that has left began is nobody's any more."""
        writers, folder, me = self._mount.writers, name.rpartition("/")[0], anyio.get_current_task().id
        other = writers.get(folder, me)
        self._disk.oracle.must(
            other == me, "I3", f"{verb} of {name} while another task changes the objects of that session"
        )
        writers[folder] = me
        try:
            await self._mount.write(self._store, verb, change)
        finally:
            writers.pop(folder, None)


class SimMirror:
    """See ports.Mirror. It may lose what it holds, all of it or the last of a session, as at a failover."""

    description = "simulated"
    is_local = False

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._disk = mount.disk
        self._inner = mount.disk.mirror
        self._lane = anyio.Lock()

    async def claim(self, owner: str, epoch: int) -> MirrorClaim:
        return await self._mount.write(
            "mirror", "claim", lambda: self._inner.claim(owner, epoch), lane=self._lane
        )

    async def epoch(self) -> int:
        return await self._mount.read("mirror", "epoch", self._inner.epoch)

    async def apply(self, batch: Sequence[MirrorUpdate]) -> list[MirrorAnswer]:
        async def apply(share: float = 1.0) -> list[MirrorAnswer]:
            self._may_lose()
            some = batch[: round(share * len(batch))]
            for update in some:
                self._disk.oracle.mirrors(update)
            answers = await self._inner.apply(some)
            for update, answer in zip(some, answers, strict=True):
                if answer in (MirrorAnswer.OK, MirrorAnswer.DUP):
                    self._disk.oracle.mirrored(update)
            return answers

        return await self._mount.write("mirror", "apply", apply, lane=self._lane, in_part=apply)

    def _may_lose(self) -> None:
        disk, sessions = self._disk, self._inner._sessions
        if sessions and disk.draws("lost"):
            self._mount.occurs("lost", "mirror")
            self._inner.lose(*([] if disk.rng.random() < 0.3 else [disk.rng.choice(sorted(sessions))]))
        elif sessions and disk.draws("older"):
            self._mount.occurs("older", "mirror")
            session_id = disk.rng.choice(sorted(sessions))
            if session_id in disk.older:
                sessions[session_id] = copy.deepcopy(disk.older[session_id])
        elif sessions and "older" in disk.profile.rates:
            session_id = disk.rng.choice(sorted(sessions))
            disk.older[session_id] = copy.deepcopy(sessions[session_id])

    async def head(self, session_id: str) -> MirrorHead | None:
        return await self._mount.read("mirror", "head", lambda: self._inner.head(session_id))

    async def heads(self) -> dict[str, MirrorHead]:
        return await self._mount.read("mirror", "heads", self._inner.heads)

    async def documents(self, session_id: str) -> dict[str, bytes]:
        return await self._mount.read("mirror", "documents", lambda: self._inner.documents(session_id))

    async def events(self, session_id: str, after_seq: int = 0) -> list[tuple[int, bytes]]:
        return await self._mount.read("mirror", "events", lambda: self._inner.events(session_id, after_seq))

    async def trim(self, session_id: str, epoch: int, upto_seq: int) -> MirrorAnswer:
        return await self._mount.write(
            "mirror", "trim", lambda: self._inner.trim(session_id, epoch, upto_seq), lane=self._lane
        )

    async def remove(self, session_id: str, epoch: int, tier: str = "recent") -> MirrorAnswer:
        return await self._mount.write(
            "mirror", "remove", lambda: self._inner.remove(session_id, epoch, tier), lane=self._lane
        )

    async def close(self) -> None:
        await self._inner.close()


class SimPlace:
    """See runtime.mirror_place.MirrorPlace: a server that outlives the process."""

    private = False
    owner = "here"

    def __init__(self, mount: Mount) -> None:
        self._mirror = SimMirror(mount)

    async def connect(self) -> Mirror:
        return self._mirror

    async def epoch(self, known: int) -> int:
        try:
            return await self._mirror.epoch()
        except StoreError:  # as the real one: the data folder knows its own
            return 0

    async def watch(self, started: Callable[[], None]) -> None:
        started()
        await anyio.sleep_forever()

    async def close(self) -> None:
        """It stays."""
