"""Commands that kill their process."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from sojourn.actors.errors import Quarantined
from sojourn.actors.ports import Identity, InFlight, RecordKind
from sojourn.actors.session.actor import Done
from sojourn.actors.session.poison import ATTEMPTS_MAX
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.stores.inflight import MemoryInflight

from ..support.faulty import FaultyJournal
from ..support.poison import result, with_fuse
from ..support.poisoned import World, log_line, new_session

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(*with_fuse(Settings(data_dir=tmp_path / "data")))


def run_owner(folder: Path, *more: str) -> tuple[int, list[str]]:
    """Exit code and what it printed, of an owner that a command kills, or would."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.poison", str(folder), *more],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout.split("\n")[:-1]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_command_that_kills_its_process_twice_is_set_aside_at_the_next_start(tmp_path: Path) -> None:
    killed = -9
    code, (session_id,) = run_owner(tmp_path, "armed")
    assert code == killed
    assert run_owner(tmp_path, "armed") == (killed, [session_id])
    assert run_owner(tmp_path, "armed") == (0, [session_id, "quarantined"])
    async with Runtime.open(Settings(data_dir=tmp_path)) as runtime:
        shown = runtime.quarantine.shown(session_id, 1)
        assert (shown["killed"], shown["attempts"], shown["source"], shown["n"]) == (True, 2, "rep", 1)
        assert shown["command"]["case_id"] == "case"  # learned when it came again
        assert shown["traceback"] is None
        assert await runtime.quarantine.retry(session_id, 1) == Done(3)
        assert await runtime.ask(session_id, result(source="rep", n=1)) == Done(3, True)


async def in_flight(world: World, left: InFlight) -> list[dict[str, Any]]:
    """What is set aside after a start at which this was found."""
    world.stores = evolve(world.stores, inflight=MemoryInflight(left))
    async with world.runtime() as runtime:
        return runtime.quarantine.listed()


async def test_a_command_that_was_only_there_when_the_process_was_killed_is_not_held_against_it(
    world: World,
) -> None:
    journal = world.stores.journal
    assert isinstance(journal, FaultyJournal)
    async with world.runtime() as runtime:
        session_id = await new_session(runtime)
    await in_flight(world, InFlight(session_id=session_id, kind=Identity.SOURCE, n=1, name="rep"))
    world.stores = evolve(world.stores, inflight=MemoryInflight())
    async with world.runtime() as runtime:
        assert await runtime.ask(session_id, log_line(source="rep", n=1)) == Done(3)
        journal.refuse_kind = RecordKind.RELEASE
        await runtime.quarantine.tidy()
        assert len(await journal.marks()) == 1
        journal.refuse_kind = None
        await runtime.quarantine.tidy()
        assert await journal.marks() == []


async def test_a_command_that_was_there_at_a_kill_and_crashes_once_is_set_aside(world: World) -> None:
    async with world.runtime() as runtime:
        session_id = await new_session(runtime)
    await in_flight(world, InFlight(session_id=session_id, kind=Identity.COMMAND_ID, n=0, name="c1"))
    world.stores = evolve(world.stores, inflight=MemoryInflight())
    async with world.runtime() as runtime:
        with pytest.raises(Quarantined):
            await runtime.ask(session_id, result(command_id="c1"))
        assert runtime.statistics().kernel.crashes == 1
        assert [mark.kind for mark in await world.stores.journal.marks()] == [RecordKind.QUARANTINE]


async def test_a_killer_of_which_only_the_identity_is_known_is_retried_by_its_sender(world: World) -> None:
    async with world.runtime() as runtime:
        session_id = await new_session(runtime)
    left = InFlight(session_id=session_id, kind=Identity.COMMAND_ID, n=0, name="c1")
    assert await in_flight(world, left) == []
    (item,) = await in_flight(world, left)
    assert (item["command_id"], item["type"], item["killed"]) == ("c1", None, True)
    world.stores = evolve(world.stores, inflight=MemoryInflight())
    world.fuse.armed = False
    async with world.runtime() as runtime:
        assert await runtime.quarantine.retry(session_id, 1) is None
        assert await runtime.ask(session_id, result(command_id="c1")) == Done(3)


async def test_a_command_that_was_done_is_answered_as_done_whatever_stood_in_the_page(world: World) -> None:
    async with world.runtime() as runtime:
        session_id = await new_session(runtime)
        await runtime.ask(session_id, log_line(command_id="c1"))
    left = InFlight(session_id=session_id, kind=Identity.COMMAND_ID, n=0, name="c1")
    await in_flight(world, left)
    assert len(await in_flight(world, left)) == 1
    async with world.runtime() as runtime:
        assert await runtime.ask(session_id, log_line(command_id="c1")) == Done(3, True)


async def test_no_more_attempts_stand_than_a_day_of_kills(world: World) -> None:
    for n in range(ATTEMPTS_MAX + 3):
        await in_flight(world, InFlight(session_id="s", kind=Identity.SOURCE, n=n, name="rep"))
    marks = await world.stores.journal.marks()
    assert {mark.kind for mark in marks} == {RecordKind.ATTEMPT}
    assert len(marks) == ATTEMPTS_MAX
