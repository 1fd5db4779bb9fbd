"""The mirror on real servers: every way to reach them, what they refuse, what becomes of calls when they go away, and the
driver's traps."""

import asyncio
import tomllib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from redis.crc import key_slot

from sojourn.actors.errors import StorageFull, StoreError, StoreUnavailable, UnusableMirror
from sojourn.actors.ports import MirrorAnswer, MirrorHead, MirrorUpdate
from sojourn.runtime.stores.mirror_keys import session_key, shard_of, tag
from sojourn.runtime.stores.mirror_redis import RedisMirror
from sojourn.runtime.stores.mirror_scripts import APPLY
from sojourn.runtime.stores.redis_server import read_url
from tests.support import redis
from tests.support.redis import PASSWORD, PASSWORD_QUOTED, Server, bulk, faking, rights, serving, wired
from tests.support.wait import await_until

pytestmark = pytest.mark.anyio
OK, DUP, GAP, FOREIGN = MirrorAnswer.OK, MirrorAnswer.DUP, MirrorAnswer.GAP, MirrorAnswer.FOREIGN
KEY = session_key("sojourn", "a")


def update(
    first_seq: int,
    last_seq: int | None = None,
    documents: Mapping[str, bytes | None] | None = None,
    *,
    session_id: str = "a",
    epoch: int = 1,
    whole: bool = False,
) -> MirrorUpdate:
    last_seq = last_seq or first_seq
    return MirrorUpdate(
        session_id=session_id,
        epoch=epoch,
        first_seq=first_seq,
        last_seq=last_seq,
        events=tuple(b"event %d" % seq for seq in range(first_seq, last_seq + 1)),
        documents=documents or {"progress": b"%d" % last_seq},
        whole=whole,
    )


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[RedisMirror]:
    mirror = await RedisMirror.open(url, **options)
    try:
        yield mirror
    finally:
        await mirror.close()


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


# -- settings that cannot be ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "no URL of a Redis"),
        ("localhost:6379", "no URL of a Redis"),
        ("http://localhost", "no URL of a Redis"),
        ("redis://", "names no host"),
        ("redis://:6379/0", "names no host"),
        ("redis://h:port", "cannot be read"),
        ("redis://h:99999", "cannot be read"),
        ("redis://[::1", "cannot be read"),
        ("redis://h/zero", "'zero' is no database"),
        ("redis://h/-1", "'-1' is no database"),
        ("redis://h?timeout=5", "no parameter 'timeout'"),
        ("redis://h?ssl_ca_certs=/x", "no parameter 'ssl_ca_certs'"),
        ("unix://", "names no socket"),
        ("unix://relative/path", "names no socket"),
    ],
)
def test_a_url_that_names_no_server_is_told_with_what_to_write(url: str, said: str) -> None:
    with pytest.raises(UnusableMirror, match="mirror") as caught:
        read_url(url)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis://u:secret@h?x=1", "redis://u:secret@h/x", "http://u:secret@h", "unix://:secret@h/s"]
)
def test_no_message_repeats_a_password(url: str) -> None:
    with pytest.raises(UnusableMirror) as caught:
        read_url(url)
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(read_url("redis://u:secret@h"))


@pytest.mark.parametrize("scheme", ["redis", "unix"])
async def test_a_server_that_is_not_there_is_said_to_be_away(scheme: str, tmp_path: Any) -> None:
    url = "redis://127.0.0.1:1" if scheme == "redis" else f"unix://{tmp_path}/none"
    with pytest.raises(StoreUnavailable, match="is it running"):
        await RedisMirror.open(url)


async def test_a_wrong_password_and_a_missing_one_are_told(server: Server) -> None:
    server.run("CONFIG", "SET", "requirepass", "right")
    for user in ("", ":wrong@", "nobody:right@"):
        with pytest.raises(UnusableMirror, match="user or password") as caught:
            await RedisMirror.open(server.tcp.replace("://", f"://{user}"))
        assert "wrong@" not in str(caught.value)


@pytest.mark.parametrize(
    "missing", ["-evalsha", "-script|load", "-info", "-hset", "resetkeys", "resetchannels"]
)
async def test_a_missing_right_is_told(server: Server, missing: str) -> None:
    server.run("ACL", "SETUSER", "sojourn", "on", f">{PASSWORD}", *rights("sojourn"), missing)
    with pytest.raises(UnusableMirror, match=r"docs/redis\.md"):
        async with opened(server.tcp.replace("://", f"://sojourn:{PASSWORD_QUOTED}@")) as mirror:
            await mirror.apply([update(1)])


async def test_a_certificate_that_is_not_trusted_is_told() -> None:
    with serving("redis", tcp=True, tls=True) as server:
        for url, said in [
            (server.tls.partition("?")[0], "ssl_ca_certs"),
            (server.tls + ".none", "file that its URL names"),
            (server.tcp.replace("redis://", "rediss://"), "speak TLS"),
        ]:
            with pytest.raises(StoreError, match=said):
                await RedisMirror.open(url)
        with pytest.raises(StoreError):
            await RedisMirror.open(f"redis://127.0.0.1:{server.tls_port}")


def says_info(text: str) -> Any:
    return lambda command: bulk(text) if command[0] == b"INFO" else b"-ERR unknown command\r\n"


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ("redis_version:6.2.14\r\n", "Redis 6.2.14, which is too old"),
        ("redis_version:7.2.4\r\nvalkey_version:7.2.9\r\n", "Valkey 7.2.9, which is too old"),
        ("redis_version:7.0.15\r\nrole:slave\r\n", "is a replica"),
        ("", "no Redis"),
        ("uptime:5\r\n", "no Redis"),
    ],
)
async def test_a_server_that_will_not_do_is_told_when_it_is_opened(info: str, said: str) -> None:
    async with faking(says_info(info)) as fake:
        with pytest.raises(UnusableMirror, match=said):
            await RedisMirror.open(fake.url)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+what\r\n", b":7\r\n", b"*0\r\n"])
async def test_what_is_no_redis_is_told(answer: bytes) -> None:
    async with faking(lambda command: answer) as fake:
        with pytest.raises(UnusableMirror, match="is no Redis"):
            await RedisMirror.open(fake.url)


async def test_a_server_that_hangs_up_is_said_to_be_away() -> None:
    async with faking(lambda command: None) as fake:
        with pytest.raises(StoreUnavailable):
            await RedisMirror.open(fake.url)


@pytest.mark.parametrize(
    ("refusal", "kind", "said"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", StorageFull, "maxmemory"),
        ("MISCONF Redis is configured to save RDB snapshots, but unable to", StorageFull, "free space"),
        ("READONLY You can't write against a read only replica.", UnusableMirror, "primary"),
        ("NOPERM this user has no permissions to run", UnusableMirror, "docs/redis.md"),
        ("NOAUTH Authentication required.", UnusableMirror, "password"),
        ("LOADING Redis is loading the dataset in memory", StoreUnavailable, "loading"),
        ("CLUSTERDOWN The cluster is down", StoreUnavailable, "at the moment"),
        ("MASTERDOWN Link with MASTER is down", StoreUnavailable, "at the moment"),
        ("NOREPLICAS Not enough good replicas to write.", StoreUnavailable, "at the moment"),
        ("BUSY Redis is busy running a script.", StoreUnavailable, "at the moment"),
        ("TRYAGAIN Multiple keys request during rehashing of slot", StoreUnavailable, "at the moment"),
        ("NOSCRIPT No matching script.", StoreUnavailable, "at the moment"),
        ("ERR unknown command 'EVALSHA'", UnusableMirror, "refused a command"),
    ],
)
async def test_each_refusal_has_its_error_and_says_what_to_do(
    refusal: str, kind: type[StoreError], said: str
) -> None:
    def says(command: list[bytes]) -> bytes:
        if command[0] == b"INFO":
            return bulk("redis_version:7.0.15\r\nrole:master\r\n")
        return f"-{refusal}\r\n".encode() if command[0] == b"EVALSHA" else b"+OK\r\n"

    async with faking(says) as fake, opened(fake.url) as mirror:
        with pytest.raises(kind, match=said) as caught:
            await mirror.apply([update(1)])
        assert type(caught.value) is kind
        assert sum(command[0] == b"EVALSHA" for command in fake.commands) <= 3


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


# -- the driver's traps --------------------------------------------------------------------------------------------


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
