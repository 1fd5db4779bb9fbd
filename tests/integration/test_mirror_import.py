"""What only the mirror has is taken in where the disk has lost it: whole folders, the journal's end, events in the middle."""

import shutil
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from sojourn.actors.errors import DurabilityUnavailable, StoreUnavailable
from sojourn.actors.ports import MirrorAnswer, MirrorHead, MirrorUpdate
from sojourn.actors.session.actor import Done
from sojourn.actors.session.codec import decode_snapshot
from sojourn.actors.session.commands import AppendLog, Command
from sojourn.actors.session.model import Ack
from sojourn.actors.session.wire import read_command, read_create
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.stores.memory import MemoryMirror

from ..support.journals import flip_payload
from ..support.memory_place import MemoryPlace, level, mirrored
from ..support.wait import await_until

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", snapshot_interval_s=3_600.0)


async def reporting(runtime: Runtime, count: int) -> str:
    record, _ = await runtime.create(read_create({"plan": "p", "title": "t"}))
    session_id: str = record["session_id"]
    await runtime.ask(session_id, read_command({"type": "session.start"}))
    for n in range(1, count + 1):
        await runtime.ask(session_id, log_line(n))
    return session_id


def log_line(n: int) -> Command:
    return Command("log.append", AppendLog(stream="stdout", text=f"line {n}"), None, "", "rep", n)


async def everything(runtime: Runtime, session_id: str) -> tuple[Any, ...]:
    events = [line.line async for line in runtime.events(session_id)]
    return (await runtime.state(session_id), events)


async def test_a_lost_data_folder_comes_back_from_the_mirror(settings: Settings) -> None:
    place = MemoryPlace()
    async with mirrored(settings, place) as runtime:
        session_id = await reporting(runtime, 5)
        before = await everything(runtime, session_id)
        await level(runtime)
        epoch = runtime.epoch
    shutil.rmtree(settings.data_dir)
    async with mirrored(settings, place) as runtime:
        assert runtime.epoch > epoch
        await await_until(lambda: session_id in runtime._journal.heads())
        assert await everything(runtime, session_id) == before
        assert (await runtime.ask(session_id, log_line(5))).duplicate
        assert await runtime.ask(session_id, log_line(6)) == Done(8)
        assert (await runtime.record(session_id))["damaged"] is None
    async with mirrored(settings, place) as runtime:
        assert (await runtime.state(session_id))[0] == 8


async def test_what_the_mirror_no_longer_held_is_declared_lost_and_the_session_goes_on(
    settings: Settings,
) -> None:
    place = MemoryPlace()
    async with mirrored(settings, place) as runtime:
        session_id = await reporting(runtime, 5)
        await level(runtime)
        before = await runtime.state(session_id)
    await place.mirror.trim(session_id, 9, 4)
    shutil.rmtree(settings.data_dir)
    async with mirrored(settings, place) as runtime:
        await await_until(lambda: session_id in runtime._journal.heads())
        seq, state = await runtime.state(session_id)
        assert seq == before[0] + 1
        assert b'"losses":[{"accepted_at":' in state
        assert b'"first_seq":1,"last_seq":4}]' in state
        events = [line.seq async for line in runtime.events(session_id, after=4)]
        assert events == [5, 6, 7, 8]
        assert await runtime.ask(session_id, log_line(6)) == Done(9)
        await level(runtime)


async def test_an_older_copy_of_the_folder_is_brought_level_with_the_mirror(
    settings: Settings, tmp_path: Path
) -> None:
    place = MemoryPlace()
    async with mirrored(settings, place) as runtime:
        session_id = await reporting(runtime, 3)
        await level(runtime)
    shutil.copytree(settings.data_dir, tmp_path / "older")
    async with mirrored(settings, place) as runtime:
        for n in range(4, 9):
            await runtime.ask(session_id, log_line(n))
        before = await everything(runtime, session_id)
        await level(runtime)
    async with mirrored(evolve(settings, data_dir=tmp_path / "older"), place) as runtime:
        await await_until(lambda: runtime._journal.heads()[session_id] == before[0][0])
        assert await everything(runtime, session_id) == before
        assert await runtime.ask(session_id, log_line(9)) == Done(11)


async def test_a_session_that_went_on_before_the_mirror_could_be_asked_stays_and_the_mirrors_is_kept_aside(
    settings: Settings, tmp_path: Path
) -> None:
    place = MemoryPlace()
    async with mirrored(settings, place) as runtime:
        session_id = await reporting(runtime, 3)
        await level(runtime)
    shutil.copytree(settings.data_dir, tmp_path / "older")
    async with mirrored(settings, place) as runtime:
        for n in range(4, 9):
            await runtime.ask(session_id, log_line(n))
        before = await everything(runtime, session_id)
        await level(runtime)
        epoch = runtime.epoch
    away = MemoryPlace(mirror=place.mirror, away=True)
    older = tmp_path / "older"
    async with mirrored(evolve(settings, data_dir=older), away, connected=False) as runtime:
        assert runtime.epoch > epoch
        assert await runtime.ask(session_id, log_line(4)) == Done(6)
        after = await everything(runtime, session_id)
        away.away = False
        await level(runtime)
        assert await everything(runtime, session_id) == after
        assert await place.mirror.head(session_id) == MirrorHead(epoch=runtime.epoch, seq=6)
    kept = older / "quarantine" / f"mirror-{session_id}-{epoch}-{before[0][0]}"
    assert (kept / "events.ndjson").read_bytes().splitlines() == before[1]
    assert decode_snapshot((kept / "snapshot.json").read_bytes()).seq == before[0][0]


async def test_events_that_the_journal_has_lost_are_filled_in(settings: Settings) -> None:
    place = MemoryPlace()
    async with mirrored(settings, place) as runtime:
        session_id = await reporting(runtime, 5)
        before = await everything(runtime, session_id)
        await level(runtime)
        rows = runtime._journal.statistics().commits
    flip_payload(settings.data_dir / "journal.db", rows - 1, 0)
    async with mirrored(settings, place) as runtime:
        assert (await runtime.record(session_id))["damaged"] is None
        assert await everything(runtime, session_id) == before
        assert await runtime.ask(session_id, log_line(6)) == Done(8)


async def test_a_new_folder_takes_nothing_from_a_private_mirror(settings: Settings) -> None:
    place = MemoryPlace(private=True)
    async with mirrored(settings, place) as runtime:
        session_id = await reporting(runtime, 1)
        await level(runtime)
    shutil.rmtree(settings.data_dir)
    async with mirrored(settings, place) as runtime:
        await await_until(lambda: session_id not in place.mirror._sessions)
        assert session_id not in runtime._journal.heads()


async def test_what_was_handed_over_leaves_the_mirror(settings: Settings) -> None:
    place = MemoryPlace()
    async with mirrored(evolve(settings, seal_after_s=0.0), place) as runtime:
        session_id = await reporting(runtime, 2)
        ended = read_command({"type": "session.complete", "outcome": "passed"})
        await runtime.ask(session_id, ended, ack=Ack.MIRRORED)
        await await_until(lambda: session_id not in runtime._journal.heads())
        await await_until(lambda: not place.mirror._sessions)
        with pytest.raises(DurabilityUnavailable, match="handed over"):
            await runtime.ask(session_id, log_line(2), ack=Ack.MIRRORED)


@pytest.mark.parametrize("in_a_batch", [False, True])
async def test_an_end_whose_mirroring_was_refused_is_an_end_all_the_same(
    settings: Settings, in_a_batch: bool
) -> None:
    class Away(MemoryMirror):
        away = False

        async def apply(self, batch: Sequence[MirrorUpdate]) -> list[MirrorAnswer]:
            if self.away:
                raise StoreUnavailable("gone")
            return await super().apply(batch)

    mirror = Away()
    async with mirrored(evolve(settings, seal_after_s=0.0), MemoryPlace(mirror=mirror)) as runtime:
        session_id = await reporting(runtime, 2)
        await level(runtime)
        mirror.away = True
        ended = read_command({"type": "session.complete", "outcome": "passed"})
        asked: Awaitable[Any] = (
            runtime.ask_batch(session_id, [ended], ack=Ack.MIRRORED)
            if in_a_batch
            else runtime.ask(session_id, ended, ack=Ack.MIRRORED)
        )
        with pytest.raises(DurabilityUnavailable) as refused:
            await asked
        assert refused.value.reached == "durable"
        await await_until(lambda: session_id not in runtime._journal.heads())
