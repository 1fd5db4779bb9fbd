"""Readers of live sessions: each event once and in order, whatever becomes of the connection; what is gone is said."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator

import anyio
import pytest

from sojourn.actors.errors import UnusableMirror
from sojourn.actors.ports import MirrorAnswer, MirrorHead, MirrorUpdate
from sojourn.runtime.mirror_reader import (
    LiveEvent,
    LiveGap,
    LiveRewound,
    LiveSession,
    MirrorReader,
    MovedAway,
    News,
)
from sojourn.runtime.stores.mirror_keys import owner_key, session_key
from sojourn.runtime.stores.mirror_redis import RedisMirror
from tests.support import redis
from tests.support.redis import PASSWORD, PASSWORD_QUOTED, Server, rights, serving, wired
from tests.support.wait import await_until

pytestmark = pytest.mark.anyio
OK = MirrorAnswer.OK


def update(
    first_seq: int, last_seq: int, *, session_id: str = "a", epoch: int = 1, whole: bool = False
) -> MirrorUpdate:
    return MirrorUpdate(
        session_id=session_id,
        epoch=epoch,
        first_seq=first_seq,
        last_seq=last_seq,
        events=tuple(b"event %d" % seq for seq in range(first_seq, last_seq + 1)),
        documents={"progress": b"%d" % last_seq},
        whole=whole,
    )


def events(first_seq: int, last_seq: int) -> list[LiveEvent]:
    return [LiveEvent(seq=seq, event=b"event %d" % seq) for seq in range(first_seq, last_seq + 1)]


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serving(request.param, tcp=True) as server:
        yield server


@pytest.fixture
async def mirror(server: Server) -> AsyncIterator[RedisMirror]:
    mirror = await RedisMirror.open(server.unix)
    yield mirror
    await mirror.close()


@pytest.fixture
async def reader(server: Server) -> AsyncIterator[MirrorReader]:
    reader = await MirrorReader.open(server.tcp)
    yield reader
    await reader.close()


async def take(following: AsyncGenerator[News, None], count: int) -> list[News]:
    found: list[News] = []
    with anyio.fail_after(20):
        while len(found) < count:
            found.append(await anext(following))
    return found


async def test_a_session_is_read_as_it_stands_and_where_it_went(
    mirror: RedisMirror, reader: MirrorReader
) -> None:
    assert await reader.read("a") is None
    await mirror.apply([update(1, 3, epoch=2)])
    assert await reader.read("a") == LiveSession(
        head=MirrorHead(epoch=2, seq=3), documents={"progress": b"3"}
    )
    await mirror.remove("a", 2, "archive")
    assert await reader.read("a") == MovedAway(tier="archive", seq=3)


async def test_events_are_followed_until_the_session_moves_away(
    mirror: RedisMirror, reader: MirrorReader
) -> None:
    await mirror.apply([update(1, 3)])
    async with contextlib.aclosing(reader.follow("a", 1)) as following:
        assert await take(following, 2) == events(2, 3)
        await mirror.apply([update(4, 4), update(1, 1, session_id="b")])
        assert await take(following, 1) == events(4, 4)
        await mirror.apply([update(5, 6)])
        await mirror.apply([update(7, 7)])
        assert await take(following, 3) == events(5, 7)
        await mirror.remove("a", 1)
        assert await take(following, 1) == [MovedAway(tier="recent", seq=7)]
        with pytest.raises(StopAsyncIteration):
            await anext(following)


async def test_events_that_left_with_the_session_are_a_gap(mirror: RedisMirror, reader: MirrorReader) -> None:
    await mirror.apply([update(1, 3)])
    await mirror.remove("a", 1)
    async with contextlib.aclosing(reader.follow("a", 1)) as following:
        assert await take(following, 2) == [LiveGap(first_seq=2, last_seq=3), MovedAway(tier="recent", seq=3)]


async def test_trimmed_events_are_a_gap(mirror: RedisMirror, reader: MirrorReader) -> None:
    await mirror.apply([update(1, 6)])
    await mirror.trim("a", 1, 4)
    async with contextlib.aclosing(reader.follow("a")) as following:
        assert await take(following, 3) == [LiveGap(first_seq=1, last_seq=4), *events(5, 6)]
    await mirror.trim("a", 1, 6)
    async with contextlib.aclosing(reader.follow("a", 5)) as following:
        assert await take(following, 1) == [LiveGap(first_seq=6, last_seq=6)]
        await mirror.apply([update(7, 7)])
        assert await take(following, 1) == events(7, 7)


async def test_thousands_of_events_are_read_page_by_page(mirror: RedisMirror, reader: MirrorReader) -> None:
    await mirror.apply([update(1, 2_000)])
    async with contextlib.aclosing(reader.follow("a")) as following:
        assert await take(following, 2_000) == events(1, 2_000)


async def test_a_session_that_is_not_there_yet_is_waited_for(
    server: Server, mirror: RedisMirror, reader: MirrorReader
) -> None:
    found: list[News] = []

    async def follow() -> None:
        async with contextlib.aclosing(reader.follow("a")) as following:
            found.extend(await take(following, 2))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        await await_until(lambda: int(server.info("pubsubshard_channels")) == 1)
        await mirror.apply([update(1, 2)])
    assert found == events(1, 2)


async def test_each_event_comes_once_and_in_order_over_broken_connections(
    server: Server, mirror: RedisMirror
) -> None:
    found: list[News] = []

    async def follow(reader: MirrorReader) -> None:
        async with contextlib.aclosing(reader.follow("a")) as following:
            async for news in following:
                if isinstance(news, MovedAway):
                    return
                found.append(news)

    async with wired(server) as wire:
        reader = await MirrorReader.open(wire.url)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow, reader)
            for seq in range(1, 201):
                wire.loses = seq % 20 == 0
                assert await mirror.apply([update(seq, seq)]) == [OK]
                await await_until(lambda: not wire.loses)
                if seq % 50 == 0:
                    await anyio.to_thread.run_sync(server.run, "CLIENT", "KILL", "TYPE", "pubsub")
            await await_until(lambda: len(found) >= 200)
            await mirror.remove("a", 1)
        await reader.close()
    assert [news for news in found if isinstance(news, LiveEvent)] == found == events(1, 200)


async def test_a_server_that_restarts_is_waited_for(
    server: Server, mirror: RedisMirror, reader: MirrorReader
) -> None:
    await mirror.apply([update(1, 2)])
    async with contextlib.aclosing(reader.follow("a")) as following:
        assert await take(following, 2) == events(1, 2)
        server.kill()
        server.start()
        assert await mirror.apply([update(2, 4, whole=True)]) == [OK]
        assert await take(following, 2) == events(3, 4)


async def test_a_session_that_was_recovered_without_its_end_is_rewound(
    mirror: RedisMirror, reader: MirrorReader
) -> None:
    await mirror.apply([update(1, 5)])
    async with contextlib.aclosing(reader.follow("a")) as following:
        assert await take(following, 5) == events(1, 5)
        await mirror.apply([update(1, 3, epoch=2, whole=True)])
        assert await take(following, 1) == [LiveRewound(epoch=2, seq=3)]
        await mirror.apply([update(4, 4, epoch=2)])
        assert await take(following, 1) == events(4, 4)


async def test_a_follower_without_news_keeps_its_connection(server: Server, mirror: RedisMirror) -> None:
    """It has no deadline: with the driver's defaults a silence of some seconds ends in an error."""
    reader = await MirrorReader.open(server.tcp, deadline_s=0.1)
    async with contextlib.aclosing(reader.follow("a")) as following, anyio.create_task_group() as tasks:
        found: list[News] = []

        async def follow() -> None:
            found.extend(await take(following, 1))

        tasks.start_soon(follow)
        await await_until(lambda: b" idle=1 " in server.run("CLIENT", "LIST", "TYPE", "pubsub"))
        before = server.run("CLIENT", "LIST", "TYPE", "pubsub").split()[0]
        await mirror.apply([update(1, 1)])
        await await_until(lambda: found)
        assert server.run("CLIENT", "LIST", "TYPE", "pubsub").split()[0] == before
    await reader.close()


async def test_the_documented_rights_of_a_reader_are_enough(server: Server, mirror: RedisMirror) -> None:
    server.run("ACL", "SETUSER", "reader", "on", ">secret", *rights("reader"))
    await mirror.apply([update(1, 3)])
    reader = await MirrorReader.open(server.tcp.replace("://", "://reader:secret@"))
    assert isinstance(await reader.read("a"), LiveSession)
    async with contextlib.aclosing(reader.follow("a")) as following:
        assert await take(following, 3) == events(1, 3)
        await mirror.apply([update(4, 4)])
        assert await take(following, 1) == events(4, 4)
    await mirror.remove("a", 1)
    assert await reader.read("a") == MovedAway(tier="recent", seq=4)
    await reader.close()


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("valkey", "unix"), ("valkey", "redis"), ("redis", "unix"), ("redis", "redis"), ("redis", "rediss")],
)
async def test_a_session_is_followed_whatever_the_way(name: str, scheme: str) -> None:
    """By a user with a password, and over TLS with an authority of one's own."""
    with serving(name, tcp=True, tls=scheme == "rediss") as server:
        server.run("ACL", "SETUSER", "reader", "on", f">{PASSWORD}", *rights("reader"))
        mirror = await RedisMirror.open(server.unix)
        await mirror.apply([update(1, 500)])
        plain = {"unix": server.unix, "redis": server.tcp, "rediss": server.tls}[scheme]
        reader = await MirrorReader.open(plain.replace("://", f"://reader:{PASSWORD_QUOTED}@", 1))
        async with contextlib.aclosing(reader.follow("a")) as following:
            assert await take(following, 500) == events(1, 500)
            await mirror.apply([update(501, 1_000)])
            assert await take(following, 500) == events(501, 1_000)
        await reader.close()
        await mirror.close()


async def test_what_is_held_now_is_read_page_by_page_with_its_gap(
    mirror: RedisMirror, reader: MirrorReader
) -> None:
    assert [news async for news in reader.held("a")] == []
    await mirror.apply([update(1, 1_200)])
    assert [news async for news in reader.held("a")] == events(1, 1_200)
    assert [news async for news in reader.held("a", 1_198)] == events(1_199, 1_200)
    await mirror.trim("a", 1, 700)
    assert [news async for news in reader.held("a")] == [
        LiveGap(first_seq=1, last_seq=700),
        *events(701, 1_200),
    ]
    await mirror.trim("a", 1, 1_200)
    assert [news async for news in reader.held("a", 1_000)] == [LiveGap(first_seq=1_001, last_seq=1_200)]


async def test_what_was_rewound_before_following_began_is_said_where_the_epoch_is_known(
    mirror: RedisMirror, reader: MirrorReader
) -> None:
    await mirror.apply([update(1, 3, epoch=2)])
    async with contextlib.aclosing(reader.follow("a", 5, epoch=1)) as following:
        assert await take(following, 1) == [LiveRewound(epoch=2, seq=3)]


async def test_whether_somebody_owns_the_namespace_is_told_by_the_claim(
    server: Server, mirror: RedisMirror, reader: MirrorReader
) -> None:
    assert not await reader.has_owner()
    await mirror.claim("host:/data", 1)
    assert await reader.has_owner()
    server.run("HSET", owner_key("sojourn"), "until", "1")
    assert not await reader.has_owner()


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_on_trio_it_says_that_it_needs_asyncio(anyio_backend: str) -> None:
    with pytest.raises(UnusableMirror, match="asyncio"):
        await MirrorReader.open("redis://127.0.0.1:1")


async def test_a_key_of_another_type_is_told(server: Server, reader: MirrorReader) -> None:
    server.run("SET", session_key("sojourn", "a"), "theirs")
    with pytest.raises(UnusableMirror, match="another type"):
        await reader.read("a")
    with pytest.raises(UnusableMirror, match="another type"):
        await anext(reader.follow("a"))


async def test_a_replica_may_be_read(server: Server, mirror: RedisMirror) -> None:
    await mirror.apply([update(1, 3)])
    with serving("valkey" if mirror.server.name == "Valkey" else "redis", tcp=True) as replica:
        replica.run("REPLICAOF", "127.0.0.1", server.port)
        reader = await MirrorReader.open(replica.tcp)

        async def arrived() -> bool:
            return bool(replica.run("EXISTS", session_key("sojourn", "a")))

        await await_until(arrived)
        async with contextlib.aclosing(reader.follow("a")) as following:
            assert await take(following, 3) == events(1, 3)
            await mirror.apply([update(4, 4)])
            assert await take(following, 1) == events(4, 4)
        await reader.close()


async def test_on_a_cluster_sessions_are_read_and_followed_at_their_nodes() -> None:
    with redis.cluster() as nodes:
        mirror = await RedisMirror.open(nodes[0].tcp)
        reader = await MirrorReader.open(nodes[1].tcp)
        for session_id in ("a", "b", "c", "d"):
            await mirror.apply([update(1, 2, session_id=session_id)])
            async with contextlib.aclosing(reader.follow(session_id)) as following:
                assert await take(following, 2) == events(1, 2)
                await mirror.apply([update(3, 3, session_id=session_id)])
                assert await take(following, 1) == events(3, 3)
        await reader.close()
        await mirror.close()
