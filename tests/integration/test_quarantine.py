"""Poison: messages that crash their session, and what a person does about them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from sojourn.actors.errors import (
    IdempotencyMismatch,
    IllegalInStatus,
    InvalidCommand,
    NoSuchSession,
    NotQuarantined,
    NotResendable,
    Quarantined,
    StorageFull,
    StoreError,
    StoreUnavailable,
)
from sojourn.actors.ports import Record, RecordKind
from sojourn.actors.session.actor import Done
from sojourn.actors.session.commands import AppendLog, Command
from sojourn.actors.session.model import Ack
from sojourn.actors.session.poison import ENTRIES_A_SESSION_MAX, Poison, encode_mark
from sojourn.actors.session.wire import read_command, read_create
from sojourn.runtime.settings import Settings

from ..support.faulty import FaultyJournal
from ..support.poison import result, with_fuse
from ..support.poisoned import World, log_line, new_session
from ..support.wait import await_until

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(*with_fuse(Settings(data_dir=tmp_path / "data")))


async def test_a_poison_command_is_kept_with_what_it_did_and_its_sender_is_told_so_also_after_a_restart(
    world: World,
) -> None:
    poison = result(command_id="c1")
    async with world.runtime() as runtime:
        session_id = await new_session(runtime)
        with pytest.raises(Quarantined, match=f"quarantine show {session_id} 1"):
            await runtime.ask(session_id, poison)
        assert world.stores.inflight.page[0] == 0  # nothing is being handled
        assert await runtime.ask(session_id, log_line()) == Done(3)
        assert world.stores.inflight.page[0] == 0
    async with world.runtime() as runtime:
        (listed,) = runtime.quarantine.listed()
        assert listed == {
            "at": listed["at"],
            "attempts": 2,
            "command_id": "c1",
            "crash": "RuntimeError: boom",
            "killed": False,
            "kind": "message",
            "number": 1,
            "session_id": session_id,
            "type": "result.record",
        }
        shown = runtime.quarantine.shown(session_id, 1)
        assert shown["command"] == {
            "case_id": "case", "command_id": "c1", "duration_s": 1.0, "outcome": "passed", "type": "result.record",
        }  # fmt: skip
        assert "in decide" in shown["traceback"]
        world.fuse.armed = False
        with pytest.raises(Quarantined):
            await runtime.ask(session_id, poison)
        with pytest.raises(IdempotencyMismatch):
            await runtime.ask(session_id, result("other", command_id="c1"))
        assert await runtime.ask(session_id, log_line()) == Done(4)
        assert runtime.statistics().quarantine.messages == 1


async def test_a_message_that_is_skipped_is_gone_for_good_and_may_be_sent_anew(world: World) -> None:
    async with world.runtime() as runtime:
        session_id = await new_session(runtime)
        with pytest.raises(Quarantined):
            await runtime.ask(session_id, result(command_id="c1"))
        await runtime.quarantine.skip(session_id, 1)
        assert runtime.quarantine.listed() == []
        for act in (runtime.quarantine.skip, runtime.quarantine.retry):
            with pytest.raises(NotQuarantined, match="message 1 of"):
                await act(session_id, 1)
    world.fuse.armed = False
    async with world.runtime() as runtime:
        assert runtime.quarantine.listed() == []
        assert await runtime.ask(session_id, result(command_id="c1")) == Done(3)


async def test_a_retry_that_takes_effect_makes_the_id_done(world: World) -> None:
    poison = result(command_id="c1")
    async with world.runtime() as runtime:
        session_id = await new_session(runtime)
        with pytest.raises(Quarantined):
            await runtime.ask(session_id, poison)
        with pytest.raises(Quarantined):
            await runtime.quarantine.retry(session_id, 1)
        assert [item["attempts"] for item in runtime.quarantine.listed(session_id)] == [4]
    async with world.runtime() as runtime:
        world.fuse.armed = False
        assert await runtime.quarantine.retry(session_id, 1) == Done(3)
        assert runtime.quarantine.listed() == []
        assert await runtime.ask(session_id, poison) == Done(3, True)


async def test_a_retry_that_the_session_refuses_stays_where_it_is(world: World) -> None:
    async with world.runtime() as runtime:
        session_id = await new_session(runtime)
        with pytest.raises(Quarantined):
            await runtime.ask(session_id, result(command_id="c1"))
        await runtime.ask(session_id, read_command({"type": "session.cancel"}))
        with pytest.raises(IllegalInStatus):
            await runtime.quarantine.retry(session_id, 1)
        assert [item["number"] for item in runtime.quarantine.listed(session_id)] == [1]


async def test_an_edited_message_takes_effect_under_its_own_identity(world: World) -> None:
    poison = result(source="rep", n=1)
    async with world.runtime() as runtime:
        session_id = await new_session(runtime)
        with pytest.raises(Quarantined):
            await runtime.ask(session_id, poison)
        world.fuse.armed = False
        fields = {"case_id": "mended", "outcome": "passed", "duration_s": 2.0}
        for wrong, pointer in (
            ({**fields, "outcome": "fine"}, "/outcome"),
            ({**fields, "source": "me", "n": 2}, "/n"),
            ({**fields, "type": "log.append"}, "/type"),
        ):
            with pytest.raises(InvalidCommand) as caught:
                await runtime.quarantine.edit(session_id, 1, wrong)
            assert caught.value.pointer == pointer
        assert await runtime.quarantine.edit(session_id, 1, fields) == Done(3)
        assert runtime.quarantine.listed() == []
        assert await runtime.ask(session_id, poison) == Done(3, True)
        assert await runtime.ask(session_id, log_line(source="rep", n=2)) == Done(4)
        lines = [line.line async for line in runtime.events(session_id, after=2)]
        assert b'"case_id":"mended"' in lines[0]


async def test_an_edited_command_with_an_id_answers_its_sender_as_done(world: World) -> None:
    poison = result(command_id="c1")
    async with world.runtime() as runtime:
        session_id = await new_session(runtime)
        with pytest.raises(Quarantined):
            await runtime.ask(session_id, poison)
        world.fuse.armed = False
        fields = {"type": "result.record", "case_id": "mended", "outcome": "passed", "duration_s": 2.0}
        assert await runtime.quarantine.edit(session_id, 1, fields) == Done(3)
        assert await runtime.ask(session_id, poison) == Done(3, True)


async def test_a_batch_loses_its_poison_line_and_no_other(world: World) -> None:
    async with world.runtime() as runtime:
        session_id = await new_session(runtime)
        lines = [
            log_line("a", source="rep", n=1),
            result(command_id="c1"),
            log_line("b", source="rep", n=2),
            result("other", command_id="c2"),
            log_line("c", source="rep", n=3),
        ]
        answers = await runtime.ask_batch(session_id, lines)
        assert [answers[at] for at in (0, 2, 4)] == [Done(3), Done(4), Done(5)]
        assert [type(answers[at]) for at in (1, 3)] == [Quarantined, Quarantined]
        assert [item["command_id"] for item in runtime.quarantine.listed(session_id)] == ["c1", "c2"]
        assert runtime.statistics().kernel.actors_quarantined == 0


async def test_a_message_whose_number_its_reporter_gave_to_another_is_sent_again_under_an_id_of_its_own(
    world: World,
) -> None:
    poison = result(source="rep", n=1)
    async with world.runtime() as runtime:
        session_id = await new_session(runtime)
        with pytest.raises(Quarantined):
            await runtime.ask(session_id, poison)
        assert await runtime.ask(session_id, log_line("instead", source="rep", n=1)) == Done(3)
        assert await runtime.ask(session_id, log_line("and on", source="rep", n=2)) == Done(4)
        with pytest.raises(Quarantined):
            await runtime.quarantine.retry(session_id, 1)
        assert [item["number"] for item in runtime.quarantine.listed()] == [1]
        world.fuse.armed = False
        assert await runtime.quarantine.retry(session_id, 1) == Done(5)
        (line,) = [line.line async for line in runtime.events(session_id, after=4)]
        assert b'"command_id":"quarantined 1 rep"' in line


async def test_a_retry_whose_end_was_not_kept_takes_no_effect_twice(world: World) -> None:
    """The mark that ends it is refused once; what was sent has taken effect."""
    journal = world.stores.journal
    assert isinstance(journal, FaultyJournal)
    async with world.runtime() as runtime:
        session_id = await new_session(runtime)
        for poison in (result(source="rep", n=1), result("other")):
            with pytest.raises(Quarantined):
                await runtime.ask(session_id, poison)
        world.fuse.armed = False
        for number in (1, 2):
            journal.refuse_kind = RecordKind.RELEASE
            with pytest.raises(StorageFull):
                await runtime.quarantine.retry(session_id, number)
            journal.refuse_kind = None
        seq = (await runtime.state(session_id))[0]
    async with world.runtime() as runtime:
        for number in (1, 2):
            done = await runtime.quarantine.retry(session_id, number)
            assert done is not None
            assert done.duplicate
        assert (await runtime.state(session_id))[0] == seq == 4
        assert runtime.quarantine.listed() == []


async def test_a_command_without_an_identity_is_kept_and_keeps_no_other_out(world: World) -> None:
    async with world.runtime() as runtime:
        session_id = await new_session(runtime)
        with pytest.raises(Quarantined):
            await runtime.ask(session_id, result())
        world.fuse.armed = False
        assert await runtime.ask(session_id, result()) == Done(3)
        assert await runtime.quarantine.retry(session_id, 1) == Done(4)
        assert runtime.quarantine.listed() == []


async def test_a_creation_that_is_poison_is_kept_although_there_is_no_session(tmp_path: Path) -> None:
    world = World(*with_fuse(Settings(data_dir=tmp_path / "data"), "dedup_commands_max"))
    command = read_create({"command_id": "c1", "title": "t"})
    async with world.runtime() as runtime:
        with pytest.raises(Quarantined):
            await runtime.create(command)
        (item,) = runtime.quarantine.listed()
        with pytest.raises(NoSuchSession):
            await runtime.record(item["session_id"])
        world.fuse.armed = False
        assert await runtime.quarantine.retry(item["session_id"], 1) == Done(1)
        record, duplicate = await runtime.create(command)
        assert (record["session_id"], record["title"], duplicate) == (item["session_id"], "t", True)


async def test_what_is_not_kept_whole_can_only_be_skipped(world: World) -> None:
    async with world.runtime() as runtime:
        session_id = await new_session(runtime)
        world.fuse.armed = False
        unwritable: Any = object()
        with pytest.raises(Quarantined):
            await runtime.ask(session_id, Command("log.append", AppendLog(stream="stdout", text=unwritable)))
        shown = runtime.quarantine.shown(session_id, 1)
        assert shown["command"] is None
        assert "log.append" in shown["text"]
        with pytest.raises(NotResendable, match="skip it"):
            await runtime.quarantine.retry(session_id, 1)
        await runtime.quarantine.skip(session_id, 1)


def standing(session_id: str, number: int) -> Record:
    poison = Poison(
        at=datetime(2026, 11, 22, tzinfo=UTC),
        attempts=2,
        command={"type": "session.start"},
        crash="RuntimeError: boom",
        digest="d",
        identity=f"command_id 0 c{number}",
    )
    return Record(session_id, number, 0, 0, encode_mark(poison), RecordKind.QUARANTINE)


async def test_a_message_for_which_there_is_no_room_is_a_dead_letter_and_counted(world: World) -> None:
    session_id = "sess_" + "a" * 32
    create = evolve(read_create({}), command_id=None)
    await world.stores.journal.append([standing(session_id, n + 1) for n in range(ENTRIES_A_SESSION_MAX)])
    async with world.runtime() as runtime:
        await runtime._send(session_id, create, Ack.DURABLE, None, 0)
        await runtime.ask(session_id, read_command({"type": "session.start"}))
        with pytest.raises(Quarantined, match="no room"):
            await runtime.ask(session_id, result())
        statistics = runtime.statistics()
        assert statistics.quarantine.messages == ENTRIES_A_SESSION_MAX
        assert statistics.quarantine.turned_away == statistics.kernel.quarantined == 1
        assert runtime._kernel.dead_letters.recent()[-1].reason == "quarantined"
        await runtime.quarantine.skip(session_id, 7)
        with pytest.raises(Quarantined, match="set aside as number 102"):
            await runtime.ask(session_id, result())


async def test_a_mark_of_a_newer_version_stays_and_costs_nothing(world: World) -> None:
    unread = Record("sess_" + "a" * 32, 1, 0, 0, b'{"form": "of tomorrow"}', RecordKind.QUARANTINE)
    await world.stores.journal.append([unread])
    async with world.runtime() as runtime:
        assert runtime.quarantine.listed() == []
        assert await new_session(runtime)
    assert await world.stores.journal.marks() == [unread]


# -- a store that fails is no crash ------------------------------------------------------------------------------------


@pytest.mark.parametrize("break_", ["full", "unknown", "unreadable", "refusing"], ids=lambda name: name)
async def test_a_store_that_fails_spends_no_attempt_and_no_intensity(world: World, break_: str) -> None:
    """A full disk, a failing sync, a disk that does not read, a writer that refuses: however often."""
    journal = world.stores.journal
    assert isinstance(journal, FaultyJournal)
    async with world.runtime() as runtime:
        session_id = await new_session(runtime)
        for n in range(8):  # more often than the intensity allows crashes
            if break_ == "full":
                journal.fault = StorageFull()
            elif break_ == "unknown":
                journal.fault = StoreUnavailable()
            elif break_ == "unreadable":
                journal.unreadable = True
                assert runtime._kernel.passivate(session_id)
            else:
                runtime._writer.refusing = StorageFull()
            with pytest.raises(StoreError):
                await runtime.ask(session_id, log_line(source="rep", n=n + 1))
            journal.fault, journal.unreadable, runtime._writer.refusing = None, False, None
            assert await runtime.ask(session_id, log_line(source="rep", n=n + 1)) == Done(n + 3)
        kernel = runtime.statistics().kernel
        assert (kernel.crashes, kernel.quarantined, kernel.actors_quarantined) == (0, 0, 0)
        assert await journal.marks() == []


async def test_a_poison_message_that_cannot_be_kept_is_refused_and_set_aside_when_it_comes_again(
    world: World,
) -> None:
    journal = world.stores.journal
    assert isinstance(journal, FaultyJournal)
    async with world.runtime() as runtime:
        session_id = await new_session(runtime)
        journal.refuse_kind = RecordKind.QUARANTINE
        with pytest.raises(StorageFull):
            await runtime.ask(session_id, result(command_id="c1"))
        assert runtime.quarantine.listed() == []
        journal.refuse_kind = None
        await await_until(lambda: runtime.readiness()["journal"] == "ok")
        with pytest.raises(Quarantined):
            await runtime.ask(session_id, result(command_id="c1"))
        assert len(await journal.marks()) == 1


async def test_a_mark_of_unknown_outcome_is_looked_up_before_anyone_is_answered(world: World) -> None:
    journal = world.stores.journal
    assert isinstance(journal, FaultyJournal)
    async with world.runtime() as runtime:
        session_id = await new_session(runtime)
        journal.fault_after = StoreUnavailable()
        with pytest.raises(Quarantined):
            await runtime.ask(session_id, result(command_id="c1"))
        assert len(runtime.quarantine.listed()) == 1
