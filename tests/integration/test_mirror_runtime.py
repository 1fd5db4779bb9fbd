"""A runtime and its mirror through faults of the server, of the way to it, of its keys and of the data folder: short versions
of the proofs `redis_faults`, `redis_altered` and `redis_folder_lost`."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sojourn.actors.session.actor import Done
from sojourn.actors.session.model import Ack
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings

from ..prove.redis_altered import ALTERATIONS, alter
from ..prove.redis_faults import Scale, Suffered, suffer
from ..prove.redis_folder_lost import lose
from ..support import redis_faults as faults
from ..support.memory_place import level
from ..support.proxy import Proxy, proxied
from ..support.redis import Server, serving
from ..support.redis_faults import Fault, until_refused
from ..support.wait import await_until
from .test_mirror_import import everything, log_line, reporting

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]
SCALE = Scale(durable=6, mirrored=2, idle=2, load_s=0.0)


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serving(request.param) as server:
        yield server


@pytest.fixture
def rng() -> random.Random:
    return random.Random(7)


def nothing_is_wrong(suffered: list[Suffered], wrong: list[str]) -> None:
    assert wrong == []
    assert [one for one in suffered if one.differences] == []
    assert all(one.acknowledged for one in suffered)


OF_THE_SERVER: dict[str, Callable[[Server], Fault]] = {
    "killed, and empty": lambda server: faults.killed(server, "nothing", until_refused),
    "killed, with an old dump": lambda server: faults.killed(server, "rdb", until_refused),
    "killed, with its log": lambda server: faults.killed(server, "aof", until_refused),
    "stopped": lambda server: faults.stopped(server, until_refused),
    "flushed": faults.flushed,
    "connections killed": lambda server: faults.disconnected(server, 3),
    "full": lambda server: faults.full(server, until_refused),
}


@pytest.mark.parametrize("name", OF_THE_SERVER)
async def test_after_a_fault_of_the_server_the_mirror_says_again_what_the_history_says(
    server: Server, name: str, tmp_path: Path, rng: random.Random
) -> None:
    suffered: list[Suffered] = []
    befall = [OF_THE_SERVER[name](server)]
    wrong = await suffer(tmp_path, server.unix, server, befall, suffered, rng, SCALE)
    nothing_is_wrong(suffered, wrong)
    if name not in ("flushed", "connections killed"):
        assert all(one.counts["refused"] for one in suffered)


OF_THE_WAY: dict[str, Callable[[Proxy], Fault]] = {
    "cut in an answer": lambda proxy: faults.cut(proxy, 3, random.Random(7)),
    "swallowed": lambda proxy: faults.swallowed(proxy, 1, random.Random(7)),
    "hung": lambda proxy: faults.hung(proxy, until_refused),
    "refused": lambda proxy: faults.refused(proxy, until_refused),
}


@pytest.mark.parametrize("name", OF_THE_WAY)
async def test_after_a_fault_of_the_network_the_mirror_says_again_what_the_history_says(
    server: Server, name: str, tmp_path: Path, rng: random.Random
) -> None:
    suffered: list[Suffered] = []
    async with proxied(server.socket_path) as proxy:
        befall = [OF_THE_WAY[name](proxy)]
        wrong = await suffer(tmp_path, proxy.url, server, befall, suffered, rng, SCALE)
    nothing_is_wrong(suffered, wrong)


async def test_what_somebody_else_did_to_the_keys_of_reporting_sessions_is_made_right(
    server: Server, tmp_path: Path, rng: random.Random
) -> None:
    # What is foreign is looked for again once a minute only: the proof waits for it.
    some = [alteration for alteration in ALTERATIONS if not alteration.foreign]
    found = await alter(tmp_path, server, some, [], 1, rng, spare=2)
    assert found["holds"], found["figures"]


async def test_a_lost_folder_whose_mirror_is_away_at_the_start_takes_its_sessions_in_once_that_is_back(
    server: Server, tmp_path: Path
) -> None:
    async with proxied(server.socket_path) as proxy:
        settings = Settings(data_dir=tmp_path / "data", mirror=proxy.url)
        async with Runtime.open(settings) as runtime:
            session_id = await reporting(runtime, 5)
            before = await everything(runtime, session_id)
            assert await runtime.ask(session_id, log_line(5), ack=Ack.MIRRORED) == Done(7, duplicate=True)
            epoch = runtime.epoch
        shutil.rmtree(settings.data_dir)
        proxy.refuses = True
        async with Runtime.open(settings) as runtime:
            assert runtime.epoch > epoch
            created = await reporting(runtime, 1)
            proxy.refuses = False
            await await_until(lambda: session_id in runtime._journal.heads())
            assert await everything(runtime, session_id) == before
            await level(runtime)
            assert await runtime.ask(session_id, log_line(6), ack=Ack.MIRRORED) == Done(8)
            assert await runtime.ask(created, log_line(2), ack=Ack.MIRRORED) == Done(4)
            epoch = runtime.epoch
        async with Runtime.open(settings) as runtime:
            assert runtime.epoch == epoch + 1
            assert (await runtime.state(session_id))[0] == 8


async def test_a_lost_data_folder_comes_back_from_the_mirror_and_says_what_is_missing(
    server: Server, tmp_path: Path, rng: random.Random
) -> None:
    found = await lose(tmp_path, server, 3, 1, rng)
    assert found["figures"]["wrong_first"] == []
    assert found["figures"]["acknowledged_mirrored"]
