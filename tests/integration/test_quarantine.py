"""Poison: messages that crash their session or its process, sessions that crash in a loop, events that cannot be applied."""

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import define, evolve, field

from sojourn.actors.errors import (
    IdempotencyMismatch,
    IllegalInStatus,
    IntensityExceeded,
    InvalidCommand,
    NoSuchSession,
    NotQuarantined,
    NotResendable,
    Quarantined,
    SessionQuarantined,
    StorageFull,
    StoreError,
    StoreUnavailable,
)
from sojourn.actors.ports import CatalogQuery, Identity, InFlight, Record, RecordKind
from sojourn.actors.session.actor import Done
from sojourn.actors.session.commands import AppendLog, Command
from sojourn.actors.session.model import Ack
from sojourn.actors.session.poison import ATTEMPTS_MAX, ENTRIES_A_SESSION_MAX, Poison, encode_mark
from sojourn.actors.session.wire import read_command, read_create
from sojourn.runtime.opening import Stores, SystemClock
from sojourn.runtime.reader import Reader
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.stores.inflight import MemoryInflight
from sojourn.runtime.stores.memory import MemoryCatalog, MemoryObjects

from ..support.faulty import FaultyJournal
from ..support.poison import Fuse, result, with_fuse
from ..support.wait import await_until

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def log_line(text: str = "x", **identity: Any) -> Command:
    return read_command({"type": "log.append", "stream": "stdout", "text": text, **identity})


@define(eq=False)
class World:
    """Stores that outlive their runtimes, and a fuse that is armed."""

    settings: Settings
    fuse: Fuse
    stores: Stores = field(
        factory=lambda: Stores(
            journal=FaultyJournal(),
            catalog=MemoryCatalog(),
            objects=MemoryObjects(),
            archive=MemoryObjects(),
        )
    )

    @asynccontextmanager
    async def runtime(self) -> AsyncIterator[Runtime]:
        async with Runtime.over(self.settings, self.stores, SystemClock()) as runtime:
            yield runtime


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(*with_fuse(Settings(data_dir=tmp_path / "data")))


async def new_session(runtime: Runtime) -> str:
    record, _ = await runtime.create(read_create({}))
    session_id: str = record["session_id"]
    await runtime.ask(session_id, read_command({"type": "session.start"}))
    return session_id


async def types(runtime: Runtime, session_id: str) -> list[str]:
    return [line.type async for line in runtime.events(session_id)]


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


# -- sessions ----------------------------------------------------------------------------------------------------------


class Broken(MemoryObjects):
    """Objects that crash whoever lists them, as a mistake of ours would."""

    broken = False

    def list(self, prefix: str) -> AsyncIterator[str]:
        if self.broken:
            raise RuntimeError("a mistake of ours")
        return super().list(prefix)


async def test_a_session_that_crashes_in_a_loop_is_set_aside_visibly_until_a_person_releases_it(
    world: World,
) -> None:
    objects = Broken()
    world.stores = evolve(world.stores, objects=objects)
    async with world.runtime() as runtime:
        session_id, other = await new_session(runtime), await new_session(runtime)
        await runtime.page(CatalogQuery())
        assert runtime._kernel.passivate(session_id)
        objects.broken = True
        with pytest.raises(IntensityExceeded, match="until it is released"):
            await runtime.ask(session_id, log_line())
        assert await runtime.ask(other, log_line()) == Done(3)
        objects.broken = False
    async with world.runtime() as runtime:
        record = await runtime.record(session_id)
        assert record["quarantined"] == {
            "at": record["quarantined"]["at"],
            "crash": "RuntimeError: a mistake of ours",
            "reason": "crash_loop",
            "seq": None,
        }
        assert (await runtime.record(other))["quarantined"] is None
        assert (await runtime.state(session_id))[0] == 2
        assert await types(runtime, session_id) == ["session.created", "session.started"]
        for refused in (runtime.ask(session_id, log_line()), runtime.accept_loss(session_id)):
            with pytest.raises(IntensityExceeded):
                await refused
        with anyio.fail_after(10):
            await runtime._drop(session_id)  # as for what is taken from the mirror: it has left memory
        (item,) = runtime.quarantine.listed()
        assert (item["kind"], item["number"], item["session_id"]) == ("session", 0, session_id)
        assert await runtime.quarantine.release(session_id)
        assert not await runtime.quarantine.release(session_id)
        assert await runtime.ask(session_id, log_line()) == Done(3)
        assert (await runtime.record(session_id))["quarantined"] is None
    async with world.runtime() as runtime:
        assert runtime.quarantine.listed() == []


async def test_the_record_of_a_session_that_crashes_its_readers_too_is_told_all_the_same(
    world: World,
) -> None:
    objects = Broken()
    world.stores = evolve(world.stores, objects=objects)
    async with world.runtime() as runtime:
        session_id = await new_session(runtime)
        await runtime.page(CatalogQuery())
        assert runtime._kernel.passivate(session_id)
        objects.broken = True
        with pytest.raises(IntensityExceeded):
            await runtime.ask(session_id, log_line())
        assert (await runtime.record(session_id))["quarantined"]["reason"] == "crash_loop"
        with pytest.raises(IntensityExceeded):
            await runtime.state(session_id)


async def test_an_event_that_cannot_be_applied_makes_its_session_read_only_before_it_and_is_tried_again(
    tmp_path: Path,
) -> None:
    world = World(*with_fuse(Settings(data_dir=tmp_path / "data"), "dedup_commands_max"))
    world.fuse.armed = False
    async with world.runtime() as runtime:
        session_id, other = await new_session(runtime), await new_session(runtime)
        await runtime.ask(session_id, log_line("counted once"))
        before = await runtime.state(session_id)
        await runtime.ask(session_id, log_line(command_id="c1"))
        await runtime.ask(session_id, log_line())
        after = await runtime.state(session_id)
    world.fuse.armed = True
    async with world.runtime() as runtime:
        assert await runtime.state(session_id) == before
        with pytest.raises(SessionQuarantined, match=r"event 4 of .* tried again at the next start"):
            await runtime.ask(session_id, log_line())
        record = await runtime.record(session_id)
        assert record["seq"] == 3
        assert record["quarantined"] == {
            "at": None,
            "crash": "RuntimeError: boom",
            "reason": "replay",
            "seq": 4,
        }
        assert await types(runtime, session_id) == ["session.created", "session.started"] + 3 * [
            "log.appended"
        ]
        assert await runtime.ask(other, log_line()) == Done(3)
        kernel = runtime.statistics().kernel
        assert (kernel.crashes, kernel.actors_quarantined) == (0, 0)
    world.fuse.armed = False
    async with world.runtime() as runtime:
        assert await runtime.state(session_id) == after
        assert (await runtime.record(session_id))["quarantined"] is None


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_event_of_a_newer_version_makes_its_session_read_only_and_shows_in_the_folder(
    tmp_path: Path,
) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    async with Runtime.open(settings) as runtime:
        session_id = await new_session(runtime)
        event = b'{"at":"2026-11-22T10:00:00Z","cause":null,"data":{},"seq":3,"type":"session.dreamt"}\n'
        await runtime._journal.append([Record(session_id, 3, 1, runtime.epoch, event)])
    async with Runtime.open(settings) as runtime:
        record = await runtime.record(session_id)
        assert (record["seq"], record["status"], record["quarantined"]["seq"]) == (2, "running", 3)
        assert "upgrade" in record["quarantined"]["crash"]
        assert (await types(runtime, session_id))[-1] == "session.dreamt"
        with pytest.raises(SessionQuarantined):
            await runtime.ask(session_id, log_line())
    async with Reader.open(settings.data_dir) as reader:
        assert (await reader.record(session_id))["quarantined"]["seq"] == 3
        assert [found["quarantined"]["seq"] for found in await reader.page(CatalogQuery())] == [3]


# -- commands that kill ------------------------------------------------------------------------------------------------


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
