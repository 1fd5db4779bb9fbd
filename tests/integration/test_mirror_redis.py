"""The mirror on real servers: every way to reach them, what stands there, and what becomes of it when they go away."""

import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
import structlog

from sojourn.actors.errors import StorageFull, StoreUnavailable, UnusableMirror
from sojourn.actors.ports import MirrorAnswer, MirrorHead, MirrorUpdate
from sojourn.runtime.stores.mirror_keys import session_key
from sojourn.runtime.stores.mirror_redis import RedisMirror
from sojourn.runtime.stores.mirror_scripts import APPLY
from tests.support.mirrors import opened, update
from tests.support.redis import PASSWORD, PASSWORD_QUOTED, Server, rights, serving

pytestmark = pytest.mark.anyio
OK, DUP, GAP, FOREIGN = MirrorAnswer.OK, MirrorAnswer.DUP, MirrorAnswer.GAP, MirrorAnswer.FOREIGN
KEY = session_key("sojourn", "a")


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serving(request.param, tcp=True) as server:
        yield server


@pytest.fixture
async def mirror(server: Server) -> AsyncIterator[RedisMirror]:
    async with opened(server.tcp) as mirror:
        yield mirror


# -- every way to reach one ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("valkey", "unix"), ("valkey", "redis"), ("redis", "unix"), ("redis", "redis"), ("redis", "rediss")],
)
async def test_a_thousand_commits_arrive_whatever_the_way(name: str, scheme: str) -> None:
    with serving(name, tcp=True, tls=scheme == "rediss") as server:
        server.run("ACL", "SETUSER", "sojourn", "on", f">{PASSWORD}", *rights("sojourn"))
        server.run("CONFIG", "SET", "requirepass", "another")
        plain = {"unix": server.unix, "redis": server.tcp, "rediss": server.tls}[scheme]
        url = plain.replace("://", f"://sojourn:{PASSWORD_QUOTED}@", 1)
        async with opened(url) as mirror:
            assert mirror.is_local
            assert mirror.server.name.lower() == name
            answers: list[MirrorAnswer] = []

            async def client(number: int) -> None:
                for seq in range(1, 51):
                    answers.extend(await mirror.apply([update(seq, session_id=f"s{number}")]))

            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(client, number)
            assert answers == [OK] * 1_000
            assert await mirror.heads() == {f"s{n}": MirrorHead(epoch=1, seq=50) for n in range(20)}
            assert [seq for seq, _ in await mirror.events("s7")] == list(range(1, 51))
            assert await mirror.documents("s7") == {"progress": b"50"}
            assert await mirror.trim("s7", 1, 40) is OK
            assert await mirror.remove("s7", 1) is OK
            documents = {str(n): b"x" * 100_000 for n in range(4)}
            assert await mirror.apply([update(7, documents=documents, session_id="large", whole=True)]) == [
                OK
            ]


@pytest.mark.parametrize("database", ["db", "path"])
async def test_the_database_of_the_url_is_used(server: Server, database: str) -> None:
    url = f"{server.unix}?db=3" if database == "db" else f"{server.tcp}/3"
    async with opened(url) as mirror:
        assert await mirror.apply([update(1)]) == [OK]
    assert server.info("db3").startswith("keys=2,")


async def test_two_namespaces_do_not_meet(server: Server) -> None:
    async with opened(server.unix, namespace="one") as one, opened(server.unix, namespace="two") as two:
        assert await one.apply([update(1, 5)]) == [OK]
        assert await two.apply([update(1)]) == [OK]
        assert await one.heads() == {"a": MirrorHead(epoch=1, seq=5)}


@pytest.mark.parametrize("namespace", ["", "a b", "{a}", "a:b", "a" * 65])
async def test_what_is_no_namespace_is_refused(namespace: str) -> None:
    with pytest.raises(ValueError, match="no namespace"):
        await RedisMirror.open("unix:///nowhere", namespace=namespace)


# -- what somebody else did ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [("DEL",), ("XDEL", "5-0"), ("XDEL", "7-0"), ("XTRIM", "MAXLEN", 2)],
    ids=lambda command: " ".join(map(str, command)),
)
async def test_a_stream_that_lacks_entries_is_seen_by_who_asks_and_by_every_64th_event(
    server: Server, mirror: RedisMirror, command: tuple[Any, ...]
) -> None:
    await mirror.apply([update(1, 3), update(4, 7)])
    assert await mirror.trim("a", 1, 3) is OK
    assert await mirror.apply([update(8, 7)]) == [DUP]
    name, *arguments = command
    server.run(name, f"{KEY}:events", *arguments)
    assert await mirror.apply([update(8, 7)]) == [GAP]
    assert await mirror.apply([update(8, 63)]) == [OK]
    assert await mirror.apply([update(64, 64)]) == [GAP]
    assert await mirror.apply([update(1, 64, whole=True), update(65, 65), update(66, 65)]) == [OK, OK, DUP]


@pytest.mark.parametrize("upto_seq", [0, 3, 7, 100])
async def test_a_trimmed_stream_lacks_nothing(mirror: RedisMirror, upto_seq: int) -> None:
    await mirror.apply([update(1, 7)])
    assert await mirror.trim("a", 1, upto_seq) is OK
    assert await mirror.apply([update(8, 7), update(8, 130), update(131, 130)]) == [DUP, OK, DUP]


@pytest.mark.parametrize("field", ["@epoch", "@seq"])
async def test_a_head_that_is_no_number_is_none_and_is_sent_whole(
    server: Server, mirror: RedisMirror, field: str
) -> None:
    await mirror.apply([update(1, 7)])
    server.run("HSET", KEY, field, "x")
    assert await mirror.head("a") is None
    assert await mirror.apply([update(1, 8, whole=True)]) == [OK]
    assert await mirror.head("a") == MirrorHead(epoch=1, seq=8)


async def test_a_claim_after_another_connection_says_that_anything_may_stand_there(
    server: Server, mirror: RedisMirror
) -> None:
    assert (await mirror.claim("me", 1)).answer is GAP
    assert (await mirror.claim("me", 1)).answer is OK
    server.run("SAVE")
    await mirror.apply([update(1)])
    server.kill()
    server.start()
    await mirror.apply([update(1, session_id="b")])
    assert (await mirror.claim("me", 1)).answer is GAP
    assert (await mirror.claim("me", 1)).answer is OK


# -- what stands there ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "theirs",
    [
        ("RPUSH", KEY, "theirs"),
        ("HSET", KEY, "theirs", "1"),
        ("SET", f"{KEY}:events", "theirs"),
        ("SET", f"{KEY}:gone", "theirs"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
async def test_a_key_of_anothers_in_our_place_is_named_and_left_as_it_is(
    server: Server, mirror: RedisMirror, theirs: tuple[str, ...], whole: bool
) -> None:
    server.run(*theirs)
    before = server.run("DUMP", theirs[1])
    batch = [update(1, session_id="b"), update(1, whole=whole), update(2, session_id="b")]
    with structlog.testing.capture_logs() as logged:
        assert await mirror.apply(batch) == [OK, FOREIGN, OK]
        assert await mirror.apply([update(1, whole=whole)]) == [FOREIGN]
        assert await mirror.remove("a", 1) is FOREIGN
    assert server.run("DUMP", theirs[1]) == before
    assert [(line["event"], line["key"]) for line in logged] == [("mirror.foreign_key", KEY)]
    assert await mirror.events("b") == [(1, b"event 1"), (2, b"event 2")]


@pytest.mark.parametrize("whole", [True, False])
async def test_a_stream_that_was_replaced_under_a_live_session_is_left_as_it_is(
    server: Server, mirror: RedisMirror, whole: bool
) -> None:
    await mirror.apply([update(1)])
    server.run("SET", f"{KEY}:events", "theirs")
    assert await mirror.apply([update(2, whole=whole)]) == [FOREIGN]
    assert await mirror.trim("a", 1, 1) is FOREIGN
    assert await mirror.head("a") == MirrorHead(epoch=1, seq=1)
    assert server.run("GET", f"{KEY}:events") == b"theirs"
    with pytest.raises(UnusableMirror, match="another type"):
        await mirror.events("a")


async def test_a_stream_that_was_replaced_under_a_session_that_rests_is_told_when_it_is_asked_about(
    server: Server, mirror: RedisMirror
) -> None:
    await mirror.apply([update(1)])
    server.run("SET", f"{KEY}:events", "theirs")
    probe = MirrorUpdate(session_id="a", epoch=1, first_seq=2, last_seq=1, events=(), documents={})
    assert await mirror.apply([probe]) == [FOREIGN]
    server.run("DEL", f"{KEY}:events")
    assert await mirror.apply([probe]) == [GAP]


async def test_reading_a_key_of_another_type_says_so(server: Server, mirror: RedisMirror) -> None:
    server.run("SET", KEY, "theirs")
    for read in (mirror.head, mirror.documents):
        with pytest.raises(UnusableMirror, match="another type"):
            await read("a")
    assert await mirror.heads() == {}


async def test_entries_of_anothers_in_our_stream_are_a_gap_and_go_with_the_next_rewriting(
    server: Server, mirror: RedisMirror
) -> None:
    await mirror.apply([update(1)])
    server.run("XADD", f"{KEY}:events", "9-0", "e", "theirs")
    assert await mirror.apply([update(2, session_id="b"), update(2)]) == [GAP, GAP]
    assert await mirror.apply([update(2, whole=True), update(3)]) == [OK, OK]
    assert await mirror.events("a") == [(2, b"event 2"), (3, b"event 3")]


async def test_every_key_goes_by_itself_after_a_week(server: Server, mirror: RedisMirror) -> None:
    week = 7 * 86_400

    def lives(key: str) -> bool:
        left: int = server.run("TTL", key)
        return week - 60 < left <= week

    silent = MirrorUpdate(
        session_id="a", epoch=1, first_seq=1, last_seq=1, events=(), documents={"x": b"1"}, whole=True
    )
    await mirror.apply([silent])
    assert lives(KEY)
    await mirror.apply([update(2)])
    assert lives(f"{KEY}:events")
    await mirror.trim("a", 1, 2)
    assert server.run("EXISTS", f"{KEY}:events") == 0
    await mirror.apply([update(3)])
    assert lives(f"{KEY}:events")
    await mirror.apply([update(4, documents={str(n): b"x" * 90_000 for n in range(9)}, whole=True)])
    assert lives(KEY)
    assert lives(f"{KEY}:events")


async def test_a_week_begins_again_with_an_update_on_another_day(server: Server, mirror: RedisMirror) -> None:
    await mirror.apply([update(1)])
    for key in (KEY, f"{KEY}:events"):
        server.run("EXPIRE", key, 100)
    await mirror.apply([update(2)])
    assert server.run("TTL", KEY) <= 100
    server.run("HSET", KEY, "@kept", "20000")
    await mirror.apply([update(3)])
    assert min(server.run("TTL", key) for key in (KEY, f"{KEY}:events")) > 100_000


async def test_a_removed_session_says_for_an_hour_where_it_went(server: Server, mirror: RedisMirror) -> None:
    await mirror.apply([update(1, 7, epoch=3)])
    assert await mirror.remove("a", 3, "recent") is OK
    assert server.run("KEYS", "*") == [f"{KEY}:gone".encode()]
    assert server.run("HMGET", f"{KEY}:gone", "epoch", "tier", "seq") == [b"3", b"recent", b"7"]
    assert 3_500 < server.run("TTL", f"{KEY}:gone") <= 3_600
    assert await mirror.heads() == {}


async def test_a_large_session_comes_in_pieces_and_leaves_none_behind(
    server: Server, mirror: RedisMirror
) -> None:
    documents = {f"result/{n}": b"x" * 10_000 for n in range(300)}
    assert await mirror.apply([update(1, 3, documents, whole=True)]) == [OK]
    assert server.calls("evalsha") >= 12
    assert sorted(server.run("KEYS", "*")) == sorted([KEY.encode(), f"{KEY}:events".encode()])
    assert await mirror.documents("a") == documents


async def test_a_large_session_of_which_a_piece_was_lost_leaves_what_stood(
    server: Server, mirror: RedisMirror
) -> None:
    await mirror.apply([update(1)])
    server.run("HSET", f"{KEY}:stage:token", "x", "1")
    parts = ["s", 1, 5, 5, 0, 0, 3, "token", 2, 0]
    assert server.run("EVALSHA", APPLY.sha, 1, KEY, 60, *parts) == b"s"
    assert await mirror.documents("a") == {"progress": b"1"}


async def test_other_sessions_go_on_while_a_large_one_is_sent(server: Server, mirror: RedisMirror) -> None:
    documents = {f"result/{n}": b"x" * 10_000 for n in range(2_000)}
    finished: list[str] = []

    async def send(name: str, batch: list[MirrorUpdate]) -> None:
        assert await mirror.apply(batch) == [OK] * len(batch)
        finished.append(name)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send, "large", [update(1, documents=documents, whole=True)])
        tasks.start_soon(send, "small", [update(1, session_id="b")])
    assert finished == ["small", "large"]


async def test_a_batch_that_is_large_goes_in_several_calls(server: Server, mirror: RedisMirror) -> None:
    batch = [update(1, documents={"x": b"x" * 100_000}, session_id=f"s{n}") for n in range(50)]
    assert await mirror.apply(batch) == [OK] * 50
    assert server.calls("evalsha") >= 5


# -- what goes wrong -----------------------------------------------------------------------------------------------


async def test_a_server_that_has_lost_everything_answers_gap(server: Server, mirror: RedisMirror) -> None:
    await mirror.apply([update(1)])
    server.run("FLUSHALL")
    assert await mirror.apply([update(2)]) == [GAP]
    assert await mirror.apply([update(2, whole=True), update(3)]) == [OK, OK]


async def test_a_server_that_was_killed_and_is_back_is_used_again(
    server: Server, mirror: RedisMirror
) -> None:
    await mirror.apply([update(1)])
    server.kill()
    with pytest.raises(StoreUnavailable):
        await mirror.apply([update(2)])
    server.start()
    assert await mirror.apply([update(2)]) == [GAP]
    assert await mirror.apply([update(2, whole=True)]) == [OK]


async def test_scripts_that_the_server_forgot_are_loaded_again(server: Server, mirror: RedisMirror) -> None:
    await mirror.apply([update(1)])
    server.run("SCRIPT", "FLUSH")
    assert await mirror.apply([update(2)]) == [OK]
    assert await mirror.events("a") == [(1, b"event 1"), (2, b"event 2")]


async def test_where_memory_is_full_nothing_is_written_and_it_goes_on_once_there_is_room(
    server: Server, mirror: RedisMirror
) -> None:
    await mirror.apply([update(1)])
    server.run("CONFIG", "SET", "maxmemory", "1mb")
    with pytest.raises(StorageFull, match="maxmemory"):
        await mirror.apply([update(2), update(1, session_id="b")])
    assert await mirror.heads() == {"a": MirrorHead(epoch=1, seq=1)}
    server.run("CONFIG", "SET", "maxmemory", "0")
    assert await mirror.apply([update(2)]) == [OK]


async def test_a_primary_that_became_a_replica_is_told(server: Server, mirror: RedisMirror) -> None:
    await mirror.apply([update(1)])
    server.run("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(UnusableMirror, match="replica"):
        await mirror.apply([update(2)])
    with pytest.raises(UnusableMirror, match="replica"):
        await RedisMirror.open(server.tcp)
    server.run("REPLICAOF", "NO", "ONE")
    assert await mirror.apply([update(2)]) == [OK]


async def test_a_server_that_takes_no_more_clients_is_told(server: Server) -> None:
    async with opened(server.tcp):
        server.run("CONFIG", "SET", "maxclients", "1")
        with pytest.raises(StoreUnavailable, match="max number of clients"):
            await RedisMirror.open(server.tcp)


async def test_what_could_not_be_sent_is_not_left_to_the_collector(
    server: Server, mirror: RedisMirror
) -> None:
    server.kill()
    batch = [update(1, 10, session_id="never-sent"), update(1, session_id="nor-this")]
    gc.collect()
    gc.disable()
    try:
        for calls in (mirror.apply(batch), mirror.head("never-sent"), mirror.heads()):
            try:
                await calls
            except StoreUnavailable:
                pass
            else:
                pytest.fail("nothing is there to answer")
        del batch, calls
        await anyio.wait_all_tasks_blocked()
        left = [one for one in gc.get_objects() if isinstance(one, MirrorUpdate)]
        assert [one for one in left if one.session_id == "never-sent"] == []
    finally:
        gc.enable()
