"""Delivery: in order, again until it is acknowledged, dropping nothing; on virtual time."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from sojourn.actors.session.ids import session_id_for
from sojourn.client import ServerProblem, ServerUnreachable
from sojourn.record.delivery import (
    BACKOFF_MAX_S,
    HEARTBEAT_INTERVAL_S,
    SILENCE_S,
    Delivery,
    Sender,
    create,
    deliver_leftovers,
    seal,
)
from sojourn.record.spool import Outbox, remember_command, spool_dir
from tests.support.fake_server import FakeServer

pytestmark = pytest.mark.trio

SESSION = "sess_" + "1" * 32
GONE = ServerUnreachable("nothing answers", "start it")


def logs(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "log.append", "stream": "stdout", "text": text} for text in texts]


def line(n: int, source: str = "rec-1", kind: str = "log.append", text: str = "x") -> bytes:
    return json.dumps({"type": kind, "text": text, "source": source, "n": n}).encode() + b"\n"


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox.create(spool_dir(tmp_path), SESSION, "")


@pytest.fixture
def sender(server: FakeServer, tmp_path: Path) -> Sender:
    return Sender(server, SESSION, tmp_path / "refused.ndjson")


@asynccontextmanager
async def running(delivery: Delivery) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(delivery.run)
        yield
        nursery.cancel_scope.cancel()


def taken(server: FakeServer) -> list[str]:
    return [command["text"] for command in server.taken]


async def test_what_is_added_is_delivered_in_order(
    server: FakeServer, outbox: Outbox, sender: Sender, autojump_clock: MockClock
) -> None:
    delivery = Delivery(outbox, server, sender)
    async with running(delivery):
        outbox.append(logs("a", "b"))
        delivery.notify()
        assert await delivery.drain(10)
        outbox.append(logs("c"))
        delivery.notify()
        assert await delivery.drain(10)
    assert taken(server) == ["a", "b", "c"]


async def test_a_steady_stream_goes_in_batches_not_line_by_line(
    server: FakeServer, outbox: Outbox, sender: Sender, autojump_clock: MockClock
) -> None:
    delivery = Delivery(outbox, server, sender)
    async with running(delivery):
        for n in range(1_000):
            outbox.append(logs(str(n)))
            delivery.notify()
            await trio.sleep(0.001)
        assert await delivery.drain(10)
    assert len(server.taken) == 1_000
    assert len(server.batches) <= 15


async def test_an_answer_that_is_lost_is_asked_for_again_and_nothing_counts_twice(
    server: FakeServer, outbox: Outbox, sender: Sender, autojump_clock: MockClock
) -> None:
    server.lose_answers = 3
    outbox.append(logs("a", "b"))
    delivery = Delivery(outbox, server, sender)
    async with running(delivery):
        assert await delivery.drain(30)
    assert taken(server) == ["a", "b"]


async def test_a_busy_server_is_left_alone_as_long_as_it_asks(
    server: FakeServer, outbox: Outbox, sender: Sender, autojump_clock: MockClock
) -> None:
    server.troubles = [ServerProblem("mailbox_full", "full", 429, retry_after_s=7.0)]
    outbox.append(logs("a"))
    delivery = Delivery(outbox, server, sender)
    async with running(delivery):
        assert await delivery.drain(30)
    assert taken(server) == ["a"]
    assert 7.0 <= trio.current_time() < 9.0


async def test_a_server_that_stays_away_keeps_everything_in_the_outbox(
    server: FakeServer, outbox: Outbox, sender: Sender, autojump_clock: MockClock
) -> None:
    server.troubles = [GONE] * 1_000
    outbox.append(logs("a"))
    delivery = Delivery(outbox, server, sender)
    async with running(delivery):
        assert not await delivery.drain(30)
        assert trio.current_time() == pytest.approx(SILENCE_S)
        assert delivery.trouble is GONE
        server.troubles.clear()
        await trio.sleep(BACKOFF_MAX_S)
    assert taken(server) == ["a"]


async def test_nobody_waits_for_a_server_that_will_never_take_it(
    server: FakeServer, outbox: Outbox, sender: Sender, autojump_clock: MockClock
) -> None:
    server.troubles = [ServerProblem("no_such_session", "erased", 404)] * 1_000
    outbox.append(logs("a"))
    delivery = Delivery(outbox, server, sender)
    async with running(delivery):
        assert not await delivery.drain(30)
    assert trio.current_time() < 1


async def test_a_server_that_is_gone_is_started_again(
    server: FakeServer, outbox: Outbox, sender: Sender, autojump_clock: MockClock
) -> None:
    server.troubles = [GONE] * 1_000

    async def restart() -> None:
        server.troubles.clear()

    outbox.append(logs("a"))
    delivery = Delivery(outbox, server, sender, restart)
    async with running(delivery):
        assert await delivery.drain(5)
    assert taken(server) == ["a"]


async def test_where_there_is_nothing_to_deliver_a_heartbeat_goes_every_15_seconds(
    server: FakeServer, outbox: Outbox, sender: Sender, autojump_clock: MockClock
) -> None:
    async with running(Delivery(outbox, server, sender)):
        await trio.sleep(4 * HEARTBEAT_INTERVAL_S + 1)
    assert server.heartbeats == 4


async def test_a_refused_command_is_set_aside_and_the_rest_is_delivered(
    server: FakeServer, sender: Sender
) -> None:
    server.refuse = lambda command: "invalid_field" if command["text"] == "bad" else None
    await sender.send(
        [line(1, text="a"), line(2, text="bad"), line(3, text="c"), line(1, "pytest-1", text="d")]
    )
    assert taken(server) == ["a", "d", "refused log.append: invalid_field: refused by the test", "c"]
    assert [command["n"] for command in server.taken if command["source"] == "rec-1"] == [1, 2, 3]
    kept = [json.loads(text) for text in sender.refused_path.read_text().splitlines()]
    assert sender.refused == 1
    assert json.loads(kept[0]["command"])["text"] == "bad"
    assert kept[0]["error"]["code"] == "invalid_field"


async def test_a_run_of_refusals_costs_few_lines_each(server: FakeServer, sender: Sender) -> None:
    server.refuse = lambda command: "limit_reached" if command["type"] == "result.record" else None
    await sender.send([line(n, kind="result.record") for n in range(1, 501)] + [line(501, text="end")])
    assert taken(server)[-1] == "end"
    assert sender.refused == 500
    assert sum(server.batches) < 5_000


async def test_a_batch_that_is_refused_whole_is_halved_until_the_wrong_line_stands_alone(
    server: FakeServer, sender: Sender
) -> None:
    class Strict(FakeServer):
        async def send(self, session_id: str, body: bytes) -> list[dict[str, Any]]:
            if b"huge" in body:
                raise ServerProblem("too_large", "over the limit", 413)
            return await super().send(session_id, body)

    strict = Strict()
    sender = Sender(strict, SESSION, sender.refused_path)
    await sender.send([line(n, text="huge" if n == 6 else str(n)) for n in range(1, 11)])
    assert sender.refused == 1
    assert [command["n"] for command in strict.taken] == list(range(1, 11))


async def test_where_even_the_substitute_is_refused_the_source_is_set_aside_whole(
    server: FakeServer, sender: Sender
) -> None:
    server.refuse = lambda command: "illegal_in_status" if command["source"] == "pytest-1" else None
    await sender.send([line(n, "pytest-1") for n in range(1, 20)] + [line(1, text="ours")])
    assert taken(server) == ["ours"]
    assert sender.refused == 19


async def test_a_line_that_finds_the_server_busy_is_not_refused(server: FakeServer, sender: Sender) -> None:
    answers = iter(["mailbox_full"])
    server.refuse = lambda command: next(answers, None)
    with pytest.raises(ServerProblem):
        await sender.send([line(1)])
    await sender.send([line(1)])
    assert sender.refused == 0
    assert len(server.taken) == 1


CREATION = {"command_id": "record-1", "user_id": "ann", "plan": "p"}


@pytest.fixture
def uncreated(tmp_path: Path) -> Outbox:
    """The outbox of a session that no server has heard of."""
    session_id = session_id_for(CREATION["command_id"], CREATION["user_id"])
    return Outbox.create(spool_dir(tmp_path), session_id, "", creation=CREATION)


async def test_the_session_is_created_before_its_first_command(
    server: FakeServer, uncreated: Outbox, sender: Sender, autojump_clock: MockClock
) -> None:
    server.troubles = [GONE, GONE]
    uncreated.append(logs("a"))
    async with running(Delivery(uncreated, server, sender)) as _:
        await trio.sleep(5)
    assert server.created == [CREATION]
    assert taken(server) == ["a"]
    assert uncreated.is_drained


async def test_a_session_that_the_server_has_already_is_not_an_obstacle(
    server: FakeServer, uncreated: Outbox
) -> None:
    server.troubles = [ServerProblem("already_exists", "it exists", 409)]
    await create(uncreated, server)
    assert uncreated.is_drained


async def test_a_server_that_names_the_session_otherwise_gets_nothing(
    server: FakeServer, tmp_path: Path
) -> None:
    outbox = Outbox.create(spool_dir(tmp_path), SESSION, "", creation=CREATION)
    with pytest.raises(ServerProblem, match="it calls the session"):
        await create(outbox, server)


class Stopped(FakeServer):
    """Takes a request and never answers."""

    async def send(self, session_id: str, body: bytes) -> list[dict[str, Any]]:
        await trio.sleep_forever()
        raise AssertionError


async def test_a_server_that_gives_no_answer_is_waited_for_a_short_while_in_all(
    outbox: Outbox, sender: Sender, autojump_clock: MockClock
) -> None:
    outbox.append(logs("a"))
    stopped = Stopped()
    delivery = Delivery(outbox, stopped, Sender(stopped, SESSION, sender.refused_path))
    async with running(delivery):
        await trio.sleep(SILENCE_S - 1)
        assert delivery.silent_s == pytest.approx(SILENCE_S - 1)
        assert not await delivery.drain(30)
        assert trio.current_time() == pytest.approx(SILENCE_S)
        assert not await delivery.drain(30)
        assert trio.current_time() == pytest.approx(SILENCE_S)


async def test_a_server_that_is_being_started_is_waited_for(
    server: FakeServer, outbox: Outbox, sender: Sender, autojump_clock: MockClock
) -> None:
    server.troubles = [GONE]

    async def start() -> None:
        await trio.sleep(2 * SILENCE_S)

    outbox.append(logs("a"))
    async with running(delivery := Delivery(outbox, server, sender, start)):
        assert await delivery.drain(30)


@pytest.mark.parametrize("code", ["illegal_in_status", "sealed", "unknown_type"])
async def test_a_seal_that_is_not_for_now_is_no_trouble(server: FakeServer, code: str) -> None:
    server.troubles = [ServerProblem(code, "not now", 409)]
    await seal(SESSION, server)
    await seal(SESSION, server)
    assert server.sealed == [SESSION]
    server.troubles = [ServerProblem("storage_full", "full", 507)]
    with pytest.raises(ServerProblem, match="full"):
        await seal(SESSION, server)


# -- what dead recorders left ---------------------------------------------------------------------------------------


async def test_what_a_dead_recorder_left_is_delivered_and_removed(
    server: FakeServer, outbox: Outbox, tmp_path: Path
) -> None:
    outbox.append(logs("a"))
    outbox.acknowledge(outbox.read())
    outbox.append(logs("b"))
    server._last[outbox.source] = 1
    spill = outbox.folder / "reporter.spill"
    spill.write_bytes(b'{"spill": {"session_id": "s"}}\n' + line(1, "pytest-1", text="spilled"))
    outbox.close()
    assert await deliver_leftovers(tmp_path, server) == 2
    assert taken(server) == ["b", "spilled"]
    assert not outbox.folder.exists()
    assert await deliver_leftovers(tmp_path, server) == 0


async def test_a_session_that_no_server_knew_is_created_delivered_and_sealed(
    server: FakeServer, uncreated: Outbox, tmp_path: Path
) -> None:
    uncreated.append(logs("a"))
    uncreated.close()
    assert await deliver_leftovers(tmp_path, server) == 1
    assert server.created == [CREATION]
    assert server.sealed == [uncreated.session_id]


async def test_of_all_that_is_left_one_sessions_part_can_be_delivered(
    server: FakeServer, outbox: Outbox, uncreated: Outbox, tmp_path: Path
) -> None:
    for one in (outbox, uncreated):
        one.append(logs(one.session_id))
        one.close()
    assert await deliver_leftovers(tmp_path, server, outbox.session_id) == 1
    assert taken(server) == [SESSION]


async def test_a_creation_that_is_wrong_is_put_away_and_does_not_hold_up_others(
    server: FakeServer, uncreated: Outbox, tmp_path: Path
) -> None:
    uncreated.close()
    server.troubles = [ServerProblem("invalid_field", "wrong", 400)]
    assert await deliver_leftovers(tmp_path, server) == 0
    assert [path.name for path in spool_dir(tmp_path).iterdir()] == [f"orphan-{uncreated.session_id}"]


async def test_a_live_recorder_is_left_alone(server: FakeServer, outbox: Outbox, tmp_path: Path) -> None:
    outbox.append(logs("a"))
    assert await deliver_leftovers(tmp_path, server) == 0
    assert outbox.folder.exists()


async def test_while_the_command_lives_its_pytest_may_still_spill(
    server: FakeServer, outbox: Outbox, tmp_path: Path
) -> None:
    outbox.append(logs("a"))
    remember_command(outbox.folder, os.getpid())
    outbox.close()
    assert await deliver_leftovers(tmp_path, server) == 1
    assert outbox.folder.exists()


async def test_a_recording_for_another_server_waits_for_that_one(server: FakeServer, tmp_path: Path) -> None:
    elsewhere = Outbox.create(spool_dir(tmp_path), SESSION, "http://elsewhere:8765")
    elsewhere.append(logs("a"))
    elsewhere.close()
    assert await deliver_leftovers(tmp_path, server) == 0
    server.address = "http://elsewhere:8765"
    assert await deliver_leftovers(tmp_path, server) == 1


async def test_a_delivery_that_breaks_off_leaves_the_rest_for_the_next(
    server: FakeServer, outbox: Outbox, tmp_path: Path
) -> None:
    outbox.append(logs("a"))
    outbox.close()
    server.troubles = [GONE]
    with pytest.raises(ServerUnreachable):
        await deliver_leftovers(tmp_path, server)
    assert await deliver_leftovers(tmp_path, server) == 1


async def test_what_belongs_to_an_erased_session_is_put_away_once(
    server: FakeServer, outbox: Outbox, tmp_path: Path
) -> None:
    outbox.append(logs("a"))
    outbox.close()
    server.troubles = [ServerProblem("no_such_session", "erased", 404)]
    assert await deliver_leftovers(tmp_path, server) == 0
    assert await deliver_leftovers(tmp_path, server) == 0
    assert [path.name for path in spool_dir(tmp_path).iterdir()] == [f"orphan-{SESSION}"]
