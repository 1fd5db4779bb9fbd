"""Servers and URLs that will not do as a mirror: what is said, and what to do."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from sojourn.actors.errors import StorageFull, StoreError, StoreUnavailable, UnusableMirror
from sojourn.actors.ports import MirrorAnswer
from sojourn.runtime.stores.mirror_redis import RedisMirror
from sojourn.runtime.stores.redis_server import read_url
from tests.support.mirrors import opened, update
from tests.support.redis import PASSWORD, PASSWORD_QUOTED, Server, bulk, faking, rights, serving

pytestmark = pytest.mark.anyio
OK = MirrorAnswer.OK


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serving(request.param, tcp=True) as server:
        yield server


@pytest.fixture
async def mirror(server: Server) -> AsyncIterator[RedisMirror]:
    async with opened(server.tcp) as mirror:
        yield mirror


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
