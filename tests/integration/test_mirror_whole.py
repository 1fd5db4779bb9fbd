"""A session that is sent to the mirror whole, with a snapshot before it where one is due, and never behind another's work; and
what refusals cost."""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sojourn.actors.errors import DurabilityUnavailable
from sojourn.actors.session.documents import all_documents
from sojourn.actors.session.model import Ack
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings

from ..support.memory_place import MemoryPlace, level, mirrored
from .test_mirror_import import log_line, reporting

pytestmark = pytest.mark.anyio
LINES = 50


@asynccontextmanager
async def forgotten(tmp_path: Path) -> AsyncIterator[tuple[Runtime, MemoryPlace, str]]:
    """A runtime without a snapshot, whose mirror has lost its only session and does not know yet."""
    settings = Settings(
        data_dir=tmp_path / "data", snapshot_interval_s=3_600.0, snapshot_journal_bytes_min=1_000
    )
    place = MemoryPlace()
    async with mirrored(settings, place) as runtime:
        session_id = await reporting(runtime, LINES)
        await level(runtime)
        place.mirror.lose(session_id)
        yield runtime, place, session_id


async def seqs(place: MemoryPlace, session_id: str) -> list[int]:
    return [seq for seq, _ in await place.mirror.events(session_id)]


async def test_where_a_snapshot_is_due_it_is_written_first_and_no_event_below_it_is_sent(
    tmp_path: Path,
) -> None:
    async with forgotten(tmp_path) as (runtime, place, session_id):
        seq = (await runtime.ask(session_id, log_line(LINES + 1))).seq
        await level(runtime)
        assert runtime.statistics().snapshots_written == 1
        assert runtime._snapshotter.seq(session_id) == seq
        assert await seqs(place, session_id) == []
        seq = (await runtime.ask(session_id, log_line(LINES + 2))).seq
        await level(runtime)
        assert await seqs(place, session_id) == [seq]
        assert await place.mirror.documents(session_id) == dict(
            all_documents(await runtime._copy(session_id))
        )


async def test_while_another_writes_the_sessions_objects_its_events_are_sent_and_nothing_waits(
    tmp_path: Path,
) -> None:
    async with forgotten(tmp_path) as (runtime, place, session_id):
        async with runtime._shelves.alone(session_id):
            seq = (await runtime.ask(session_id, log_line(LINES + 1))).seq
            await level(runtime)
        assert runtime.statistics().snapshots_written == 0
        assert await seqs(place, session_id) == list(range(1, seq + 1))


async def test_refusals_of_mirrored_leave_nothing_for_the_garbage_collector(tmp_path: Path) -> None:
    place = MemoryPlace(away=True)
    async with mirrored(Settings(data_dir=tmp_path / "data"), place, connected=False) as runtime:
        session_id = await reporting(runtime, 1)

        async def refused(n: int) -> int:
            try:
                await runtime.ask(session_id, log_line(n), ack=Ack.MIRRORED)
            except DurabilityUnavailable as error:
                return error.seq or 0
            return 0

        assert await refused(2) == 4
        gc.collect()
        seqs = [await refused(n) for n in range(3, 103)]
        assert seqs == list(range(5, 105))
        assert gc.collect() < len(seqs)
