"""`show` and `tail` of live sessions in a mirror, as programs beside a runtime that knows nothing of them."""

import json
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from anyio.abc import Process

from sojourn.actors.ports import MirrorAnswer, MirrorUpdate
from sojourn.actors.session.codec import encode_event
from sojourn.actors.session.commands import AppendLog, Command, Create, Event, Start
from sojourn.actors.session.core import apply, decide
from sojourn.actors.session.documents import all_documents
from sojourn.actors.session.model import Limits, SessionState
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.stores.mirror_redis import RedisMirror
from tests.support import owner
from tests.support.redis import PASSWORD, PASSWORD_QUOTED, Server, rights, serving
from tests.support.tiers import START
from tests.support.wait import await_until

from .test_look import ENVIRONMENT, Lines, command, sojourn

pytestmark = pytest.mark.anyio
SESSION = "sess_" + "1" * 32
OK = MirrorAnswer.OK


@pytest.fixture
def server() -> Iterator[Server]:
    with serving("valkey", tcp=True) as server:
        yield server


@pytest.fixture
async def mirror(server: Server) -> AsyncIterator[RedisMirror]:
    mirror = await RedisMirror.open(server.unix)
    await mirror.claim("host:/data", 1)
    yield mirror
    await mirror.close()


class Session:
    """A session that is written into a mirror as a runtime does it; lines are numbered by their events."""

    def __init__(self, mirror: RedisMirror, epoch: int = 1) -> None:
        self.mirror = mirror
        self.epoch = epoch
        self.state = SessionState(session_id=SESSION)
        self.events: list[Event] = []

    async def create(self, lines: int = 0) -> None:
        await self.send(Command("session.create", Create(plan="nightly", title="a title")))
        await self.send(Command("session.start", Start()))
        for _ in range(lines):
            await self.line()

    async def line(self) -> None:
        text = f"line {self.state.seq + 1}"
        await self.send(Command("log.append", AppendLog(stream="stdout", text=text)))

    async def send(self, what: Command) -> None:
        for event in decide(self.state, what, START, Limits()):
            apply(self.state, event, Limits())
            self.events.append(event)
        assert await self.mirror.apply([self.update(self.state.seq)]) == [OK]

    def update(self, first_seq: int, *, whole: bool = False) -> MirrorUpdate:
        return MirrorUpdate(
            session_id=SESSION,
            epoch=self.epoch,
            first_seq=first_seq,
            last_seq=self.state.seq,
            events=tuple(encode_event(event) for event in self.events[first_seq - 1 :]),
            documents=dict(all_documents(self.state)),
            whole=whole,
        )


@asynccontextmanager
async def following(*arguments: str) -> AsyncIterator[tuple[Process, Lines, Lines]]:
    """`tail --follow`: the process, its lines, and what it says on stderr."""
    process = await anyio.open_process(
        command("tail", *arguments, "--follow"), stderr=subprocess.PIPE, env=ENVIRONMENT
    )
    try:
        with anyio.fail_after(60):
            yield process, Lines(process.stdout), Lines(process.stderr)
    finally:
        if process.returncode is None:
            process.kill()
        await process.aclose()


async def run(*arguments: str, code: int = 0) -> str:
    """A command's output, beside an event loop that goes on; for another exit code than 0, its stderr."""
    return await anyio.to_thread.run_sync(lambda: sojourn(*arguments, code=code))


async def test_a_live_session_is_followed_from_another_process_until_its_end(
    server: Server, tmp_path: Path
) -> None:
    """By a user who may only read."""
    server.run("ACL", "SETUSER", "reader", "on", f">{PASSWORD}", *rights("reader"))
    url = server.tcp.replace("://", f"://reader:{PASSWORD_QUOTED}@")
    settings = Settings(data_dir=tmp_path, mirror=server.unix, mirror_namespace="sojourn")
    async with Runtime.open(settings) as runtime:
        session_id = await owner.create(runtime, plan="nightly", title="followed")
        await await_until(partial(is_level, runtime, session_id, 2))
        async with (
            following("--redis", url, session_id) as (process, lines, said),
            following("--redis", url, session_id, "--json") as (_, stored, _),
        ):
            assert await lines.line() == "-- session created"
            assert await lines.line() == "-- session started"
            text = "one \u2028 line \x85 only"
            await owner.ask(runtime, session_id, type="log.append", stream="stdout", text=text)
            assert await lines.line() == text
            await owner.ask(runtime, session_id, type="session.complete", outcome="passed")
            assert await lines.line() == "-- session completed: outcome passed"
            assert await process.wait() == 0
            assert await said.rest() == ""
            expected = [line.line.decode() async for line in runtime.events(session_id)]
            assert [await stored.line() for _ in range(4)] == expected[:4]


async def test_a_session_is_shown_as_its_server_shows_it(server: Server, tmp_path: Path) -> None:
    async with Runtime.open(Settings(data_dir=tmp_path, mirror=server.unix)) as runtime:
        ended, _, running = await owner.fill(runtime)
        for session_id in (ended, running):
            seq = (await runtime.record(session_id))["seq"]
            await await_until(partial(is_level, runtime, session_id, seq))
            shown = json.loads(await run("show", session_id, "--json", "--redis", server.tcp))
            record, _, state = await runtime.snapshot(session_id)
            assert shown["state"] == json.loads(state)
            assert lasting(shown["record"]) == lasting(msgspec.to_builtins(record))
        text = await run("show", ended, "--redis", server.tcp)
    assert text.startswith("first\ncompleted: failed (exit code 1)\n")
    assert f"at {server.tcp}, namespace sojourn" in text


def is_level(runtime: Runtime, session_id: str, seq: int) -> bool:
    return runtime.mirrored_seq(session_id) == seq


def lasting(record: Mapping[str, Any]) -> dict[str, Any]:
    """What does not depend on who reads it, and when."""
    passing = ("last_sign_at", "duration_s", "metadata", "storage")
    return {name: value for name, value in record.items() if name not in passing}


async def test_without_following_it_prints_what_the_mirror_holds_and_says_what_is_missing(
    server: Server, mirror: RedisMirror
) -> None:
    session = Session(mirror)
    await session.create(lines=8)
    assert await mirror.trim(SESSION, 1, 6) is OK
    done = await anyio.run_process(
        command("tail", SESSION, "--redis", server.tcp), env=ENVIRONMENT, check=False
    )
    assert done.returncode == 0
    assert done.stdout.decode().splitlines() == [f"line {seq}" for seq in (7, 8, 9, 10)]
    assert done.stderr.decode() == (
        "sojourn: events 1 to 6 are not in the mirror, which keeps those since the last snapshot; the folder or server it "
        f"belongs to has them: `sojourn tail {SESSION} --data DIR`, or --server URL\n"
    )
    # Of the last two lines nothing is missing.
    done = await anyio.run_process(
        command("tail", SESSION, "--redis", server.tcp, "-n", "2", "--json"), env=ENVIRONMENT
    )
    assert [json.loads(line)["seq"] for line in done.stdout.splitlines()] == [9, 10]
    assert done.stderr == b""


async def test_a_gap_a_rewind_and_the_hand_off_are_said_while_it_follows(
    server: Server, mirror: RedisMirror
) -> None:
    session = Session(mirror)
    await session.create(lines=2)
    async with following(SESSION, "--redis", server.tcp, "-n", "1", "--forever") as (process, lines, said):
        assert await lines.line() == "line 4"
        # Recovered without its last event.
        again = Session(mirror, epoch=2)
        for event in session.events[:3]:
            apply(again.state, event, Limits())
            again.events.append(event)
        assert await mirror.apply([again.update(1, whole=True)]) == [OK]
        assert "recovered without its events above 3 (epoch 2)" in await said.line()
        await again.line()
        assert await lines.line() == "line 4"
        # What is sent whole begins with the events since the snapshot.
        for _ in range(3):
            line = Command("log.append", AppendLog(stream="stdout", text="unseen"))
            for event in decide(again.state, line, START, Limits()):
                apply(again.state, event, Limits())
                again.events.append(event)
        assert await mirror.apply([again.update(7, whole=True)]) == [OK]
        assert (await said.line()).startswith("sojourn: events 5 to 6 are not in the mirror")
        assert await lines.line() == "unseen"
        assert await mirror.remove(SESSION, 2, "recent") is OK
        assert f"session {SESSION} was handed over" in await said.line()
        assert await process.wait() == 0


async def test_a_server_that_goes_away_is_waited_for(server: Server, mirror: RedisMirror) -> None:
    session = Session(mirror)
    await session.create()
    async with following(SESSION, "--redis", server.tcp) as (process, lines, _):
        assert await lines.line() == "-- session created"
        assert await lines.line() == "-- session started"
        server.kill()
        server.start()
        assert await mirror.apply([session.update(1, whole=True)]) == [OK]
        await session.line()
        assert await lines.line() == "line 3"
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130


async def test_a_session_that_nobody_owns_is_said_to_be_lost(server: Server) -> None:
    mirror = await RedisMirror.open(server.unix)
    await Session(mirror).create()
    await mirror.close()
    assert json.loads(await run("show", SESSION, "--json", "--redis", server.tcp))["record"]["lost"]
    async with following(SESSION, "--redis", server.tcp) as (process, lines, said):
        assert await lines.line() == "-- session created"
        assert "the session is lost" in await said.line()
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130


@pytest.mark.parametrize("name", ["show", "tail"])
async def test_a_session_that_is_not_there_is_told_with_what_is_known_of_it(
    server: Server, mirror: RedisMirror, name: str
) -> None:
    said = await run(name, SESSION, "--redis", server.tcp, code=2)
    version = server.info("valkey_version")
    assert said.startswith(f"sojourn: Valkey {version} at {server.tcp} knows no session {SESSION} in the ")
    assert said.count("\n") == 1
    await Session(mirror).create()
    assert "knows no session" in await run(
        name, SESSION, "--redis", server.tcp, "--namespace", "another", code=2
    )
    await mirror.remove(SESSION, 1, "archive")
    gone = await run(name, SESSION, "--redis", server.tcp, code=2)
    assert "was handed over, and is live no more: its tier is archive, its last event here was 2" in gone


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["last", "--redis", "{}"], "is no whole session id"),
        ([SESSION, "--redis", "{}", "--data", "/tmp"], "--redis excludes --data and --server"),
        ([SESSION, "--redis", "{}", "--namespace", "a:b"], "--namespace: 'a:b' is no namespace"),
        ([SESSION, "--namespace", "b"], "no mirror was named; name its server with --redis URL"),
        ([SESSION, "--namespace", "b", "--data", "/tmp"], "or leave --namespace out"),
        ([SESSION, "--redis", "localhost:6379"], "this is no URL of a Redis"),
        ([SESSION, "--redis", "redis://127.0.0.1:1"], "is it running"),
        ([SESSION, "--redis", "{}", "secret"], "user or password"),
    ],
)
def test_a_mistake_is_one_line_with_its_remedy(server: Server, arguments: list[str], said: str) -> None:
    url = server.tcp
    if arguments[-1] == "secret":
        server.run("CONFIG", "SET", "requirepass", "another")
        url, arguments = server.tcp.replace("://", "://:secret@"), arguments[:-1]
    written = sojourn("tail", *[argument.format(url) for argument in arguments], code=2)
    assert written.startswith("sojourn: ")
    assert said in written
    assert "secret" not in written
    assert written.count("\n") == 1
