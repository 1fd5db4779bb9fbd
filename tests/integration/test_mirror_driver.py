"""The driver's traps: calls that are sent again, connections that break, a cluster whose shards move."""

import asyncio
import tomllib
from collections.abc import AsyncIterator, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import anyio
import pytest
from redis.crc import key_slot

from sojourn.actors.errors import StoreUnavailable, UnusableMirror
from sojourn.actors.ports import MirrorAnswer, MirrorHead
from sojourn.runtime.stores.mirror_keys import session_key, shard_of, tag
from sojourn.runtime.stores.mirror_redis import RedisMirror
from tests.support import redis
from tests.support.mirrors import opened, update
from tests.support.redis import Server, serving, wired
from tests.support.wait import await_until

pytestmark = pytest.mark.anyio
OK, DUP, GAP = MirrorAnswer.OK, MirrorAnswer.DUP, MirrorAnswer.GAP


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serving(request.param, tcp=True) as server:
        yield server


@pytest.fixture
async def mirror(server: Server) -> AsyncIterator[RedisMirror]:
    async with opened(server.tcp) as mirror:
        yield mirror


def test_no_driver_before_8_1_is_taken() -> None:
    document = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert "redis[hiredis]>=8.1" in document["project"]["dependencies"]
    assert tuple(map(int, version("redis").split(".")[:2])) >= (8, 1)


def test_the_wheel_of_the_private_server_is_in_no_tests_way(pytestconfig: pytest.Config) -> None:
    """It has a plugin for pytest, which is off: its name stands in our settings."""
    assert not pytestconfig.pluginmanager.hasplugin("valkey")


async def test_a_slow_answer_is_asked_for_twice_and_not_eleven_times(server: Server) -> None:
    async with opened(server.tcp, deadline_s=0.1) as mirror:
        assert await mirror.apply([update(1)]) == [OK]
        before = server.calls("evalsha")
        with server.stopped(), pytest.raises(StoreUnavailable, match="in time"):
            await mirror.apply([update(2)])
        assert await mirror.apply([update(2)]) in ([OK], [DUP])
        assert server.calls("evalsha") - before <= 3
        assert await mirror.events("a") == [(1, b"event 1"), (2, b"event 2")]


async def test_a_call_whose_answer_was_lost_is_sent_again_and_takes_effect_once(server: Server) -> None:
    async with wired(server) as wire, opened(wire.url) as mirror:
        await mirror.apply([update(1)])
        wire.loses = True
        assert await mirror.apply([update(2)]) == [DUP]
        wire.loses = True
        documents = {str(n): b"x" * 100_000 for n in range(5)}
        assert await mirror.apply([update(3, documents=documents, whole=True)]) == [OK]
        wire.loses = True
        assert await mirror.remove("b", 1) is OK
        assert await mirror.apply([update(4)]) == [OK]
        assert [seq for seq, _ in await mirror.events("a")] == [3, 4]
        assert await mirror.documents("a") == {**documents, "progress": b"4"}


@pytest.mark.parametrize("way", ["tcp", "unix"])
async def test_an_idle_connection_that_the_server_closed_costs_no_error(server: Server, way: str) -> None:
    async with opened(getattr(server, way)) as mirror:
        for seq in range(1, 11):
            assert await mirror.apply([update(seq)]) == [OK]
            assert await mirror.head("a") == MirrorHead(epoch=1, seq=seq)
            server.run("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


async def test_calls_under_way_when_the_connection_breaks_are_sent_again_in_order(
    server: Server, mirror: RedisMirror
) -> None:
    answers: list[MirrorAnswer] = []

    async def send(seq: int) -> None:
        answers.extend(await mirror.apply([update(seq)]))

    def are(count: int) -> bool:
        return len(answers) == count

    async with anyio.create_task_group() as tasks:
        for seq in range(1, 301):
            tasks.start_soon(send, seq)
            if seq % 60 == 0:
                await anyio.to_thread.run_sync(server.run, "CLIENT", "KILL", "TYPE", "normal")
                await await_until(partial(are, seq))
    # A gap: what is sent again had arrived, and so had a later one. None came out of order, or it would be missing below.
    assert set(answers) <= {OK, DUP, GAP}
    assert [seq for seq, _ in await mirror.events("a")] == list(range(1, 301))


async def test_cancelled_callers_cost_no_connection_and_leave_no_answer_to_others(
    server: Server, mirror: RedisMirror
) -> None:
    await mirror.apply([update(1, session_id="b")])
    await mirror.head("b")
    before = int(server.info("total_connections_received"))
    for seq in range(1, 301):
        with anyio.move_on_after(0.0005 * (seq % 3)):
            await mirror.apply([update(seq)])
        assert await mirror.apply([update(seq, session_id="b")]) == [DUP if seq == 1 else OK]
        assert (await mirror.head("b")) == MirrorHead(epoch=1, seq=seq)
    assert await mirror.head("a") == MirrorHead(epoch=1, seq=300)
    assert int(server.info("total_connections_received")) - before == 1  # this test's own


async def test_a_second_batch_leaves_before_the_first_is_answered(
    server: Server, mirror: RedisMirror
) -> None:
    await mirror.apply([update(1)])
    before = int(server.info("total_net_input_bytes"))
    with server.stopped():
        calls = [asyncio.create_task(mirror.apply([update(seq)])) for seq in (2, 3)]
        await anyio.lowlevel.checkpoint()
    assert await asyncio.gather(*calls) == [[OK], [OK]]
    assert int(server.info("total_net_input_bytes")) > before


async def test_closing_waits_for_what_was_begun(server: Server) -> None:
    mirror = await RedisMirror.open(server.tcp)
    call = asyncio.create_task(mirror.apply([update(1, 9)]))
    await anyio.lowlevel.checkpoint()
    await mirror.close()
    assert await call == [OK]
    assert int(server.info("connected_clients")) == 1


async def test_closing_while_the_server_is_away_ends() -> None:
    with serving("valkey") as server:
        mirror = await RedisMirror.open(server.unix, deadline_s=0.1)
        await mirror.apply([update(1)])
        with server.stopped():
            call = asyncio.create_task(mirror.apply([update(2)]))
            await anyio.lowlevel.checkpoint()
            await mirror.close()
            with pytest.raises(StoreUnavailable):
                await call


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_on_trio_it_says_that_it_needs_asyncio(anyio_backend: str) -> None:
    with pytest.raises(UnusableMirror, match="asyncio"):
        await RedisMirror.open("redis://127.0.0.1:1")


# -- a cluster -----------------------------------------------------------------------------------------------------


async def test_on_a_cluster_a_batch_is_one_call_to_each_shard_and_follows_one_that_moves() -> None:
    with redis.cluster() as nodes:
        ids = [f"sess_{n}" for n in range(200)]
        async with opened(nodes[1].tcp) as mirror:
            before = sum(node.calls("evalsha") for node in nodes)
            assert await mirror.apply([update(1, session_id=one) for one in ids]) == [OK] * 200
            assert sum(node.calls("evalsha") for node in nodes) - before == 16
            assert len(await mirror.heads()) == 200
            moved = _move(nodes, shard_of("sess_0"))
            assert await mirror.apply([update(2, session_id="sess_0")]) == [GAP]
            assert await mirror.apply([update(2, session_id="sess_0", whole=True)]) == [OK]
            assert moved.run("EXISTS", session_key("sojourn", "sess_0")) == 1


@pytest.mark.parametrize("gone", [0, 2])  # the one that the URL names, and another
async def test_on_a_cluster_a_node_that_is_gone_costs_its_shards_alone(gone: int) -> None:
    with redis.cluster() as nodes:
        async with opened(nodes[0].tcp, deadline_s=0.5) as mirror:
            by_node = {_holder(nodes, shard_of(f"s{n}")): f"s{n}" for n in range(100)}
            nodes[gone].kill()
            for node, session_id in by_node.items():
                if node is nodes[gone]:
                    with pytest.raises(StoreUnavailable):
                        await mirror.apply([update(1, session_id=session_id)])
                else:
                    assert await mirror.apply([update(1, session_id=session_id)]) == [OK]
            nodes[gone].start()
            lost = by_node[nodes[gone]]

            async def is_back() -> bool:
                try:
                    return await mirror.apply([update(1, session_id=lost)]) == [OK]
                except StoreUnavailable:
                    return False

            await await_until(is_back)


def _holder(nodes: list[Server], shard: int) -> Server:
    slot = key_slot(tag(shard).encode())
    for low, high, node, *_ in nodes[0].run("CLUSTER", "SLOTS"):
        if low <= slot <= high:
            return next(one for one in nodes if one.port == node[1])
    raise AssertionError(slot)


def _move(nodes: list[Server], shard: int) -> Server:
    """A shard's slot goes to another node, and what it held is lost."""
    slot = key_slot(tag(shard).encode())
    source = _holder(nodes, shard)
    target = next(node for node in nodes if node is not source)
    for key in source.run("CLUSTER", "GETKEYSINSLOT", slot, 1_000):
        source.run("DEL", key)
    name = target.run("CLUSTER", "MYID")
    for node in (target, source):
        assert node.run("CLUSTER", "SETSLOT", slot, "NODE", name) == b"OK"
    return target
