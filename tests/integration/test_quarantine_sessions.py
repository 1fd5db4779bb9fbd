"""Sessions that crash in a loop, and those with an event that cannot be applied."""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from attrs import evolve

from sojourn.actors.errors import IntensityExceeded, SessionQuarantined
from sojourn.actors.ports import CatalogQuery, Record
from sojourn.actors.session.actor import Done
from sojourn.runtime.reader import Reader
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.stores.memory import MemoryObjects

from ..support.poison import with_fuse
from ..support.poisoned import World, log_line, new_session, types

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def world(tmp_path: Path) -> World:
    # So that a session that comes back looks for its snapshots, however short it is.
    return World(*with_fuse(Settings(data_dir=tmp_path / "data", snapshot_journal_bytes_min=0)))


class Broken(MemoryObjects):
    """Objects that crash whoever lists them, as a mistake of ours would."""

    broken = False

    def list(self, prefix: str) -> AsyncIterator[str]:
        if self.broken:
            raise RuntimeError("a mistake of ours")
        return super().list(prefix)


async def test_a_session_that_crashes_in_a_loop_is_set_aside_visibly_until_a_person_releases_it(
    world: World,
) -> None:
    objects = Broken()
    world.stores = evolve(world.stores, objects=objects)
    async with world.runtime() as runtime:
        session_id, other = await new_session(runtime), await new_session(runtime)
        await runtime.page(CatalogQuery())
        assert runtime._kernel.passivate(session_id)
        objects.broken = True
        with pytest.raises(IntensityExceeded, match="until it is released"):
            await runtime.ask(session_id, log_line())
        assert await runtime.ask(other, log_line()) == Done(3)
        objects.broken = False
    async with world.runtime() as runtime:
        record = await runtime.record(session_id)
        assert record["quarantined"] == {
            "at": record["quarantined"]["at"],
            "crash": "RuntimeError: a mistake of ours",
            "reason": "crash_loop",
            "seq": None,
        }
        assert (await runtime.record(other))["quarantined"] is None
        assert (await runtime.state(session_id))[0] == 2
        assert await types(runtime, session_id) == ["session.created", "session.started"]
        for refused in (runtime.ask(session_id, log_line()), runtime.accept_loss(session_id)):
            with pytest.raises(IntensityExceeded):
                await refused
        with anyio.fail_after(10):
            await runtime._drop(session_id)  # as for what is taken from the mirror: it has left memory
        (item,) = runtime.quarantine.listed()
        assert (item["kind"], item["number"], item["session_id"]) == ("session", 0, session_id)
        assert await runtime.quarantine.release(session_id)
        assert not await runtime.quarantine.release(session_id)
        assert await runtime.ask(session_id, log_line()) == Done(3)
        assert (await runtime.record(session_id))["quarantined"] is None
    async with world.runtime() as runtime:
        assert runtime.quarantine.listed() == []


async def test_the_record_of_a_session_that_crashes_its_readers_too_is_told_all_the_same(
    world: World,
) -> None:
    objects = Broken()
    world.stores = evolve(world.stores, objects=objects)
    async with world.runtime() as runtime:
        session_id = await new_session(runtime)
        await runtime.page(CatalogQuery())
        assert runtime._kernel.passivate(session_id)
        objects.broken = True
        with pytest.raises(IntensityExceeded):
            await runtime.ask(session_id, log_line())
        assert (await runtime.record(session_id))["quarantined"]["reason"] == "crash_loop"
        with pytest.raises(IntensityExceeded):
            await runtime.state(session_id)


async def test_an_event_that_cannot_be_applied_makes_its_session_read_only_before_it_and_is_tried_again(
    tmp_path: Path,
) -> None:
    world = World(*with_fuse(Settings(data_dir=tmp_path / "data"), "dedup_commands_max"))
    world.fuse.armed = False
    async with world.runtime() as runtime:
        session_id, other = await new_session(runtime), await new_session(runtime)
        await runtime.ask(session_id, log_line("counted once"))
        before = await runtime.state(session_id)
        await runtime.ask(session_id, log_line(command_id="c1"))
        await runtime.ask(session_id, log_line())
        after = await runtime.state(session_id)
    world.fuse.armed = True
    async with world.runtime() as runtime:
        assert await runtime.state(session_id) == before
        with pytest.raises(SessionQuarantined, match=r"event 4 of .* tried again at the next start"):
            await runtime.ask(session_id, log_line())
        record = await runtime.record(session_id)
        assert record["seq"] == 3
        assert record["quarantined"] == {
            "at": None,
            "crash": "RuntimeError: boom",
            "reason": "replay",
            "seq": 4,
        }
        assert await types(runtime, session_id) == ["session.created", "session.started"] + 3 * [
            "log.appended"
        ]
        assert await runtime.ask(other, log_line()) == Done(3)
        kernel = runtime.statistics().kernel
        assert (kernel.crashes, kernel.actors_quarantined) == (0, 0)
    world.fuse.armed = False
    async with world.runtime() as runtime:
        assert await runtime.state(session_id) == after
        assert (await runtime.record(session_id))["quarantined"] is None


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_event_of_a_newer_version_makes_its_session_read_only_and_shows_in_the_folder(
    tmp_path: Path,
) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    async with Runtime.open(settings) as runtime:
        session_id = await new_session(runtime)
        event = b'{"at":"2026-11-22T10:00:00Z","cause":null,"data":{},"seq":3,"type":"session.dreamt"}\n'
        await runtime._journal.append([Record(session_id, 3, 1, runtime.epoch, event)])
    async with Runtime.open(settings) as runtime:
        record = await runtime.record(session_id)
        assert (record["seq"], record["status"], record["quarantined"]["seq"]) == (2, "running", 3)
        assert "upgrade" in record["quarantined"]["crash"]
        assert (await types(runtime, session_id))[-1] == "session.dreamt"
        with pytest.raises(SessionQuarantined):
            await runtime.ask(session_id, log_line())
    async with Reader.open(settings.data_dir) as reader:
        assert (await reader.record(session_id))["quarantined"]["seq"] == 3
        assert [found["quarantined"]["seq"] for found in await reader.page(CatalogQuery())] == [3]
