"""Reads that wait together: one turn, no stale answer, and nobody's leaving or error is another's loss."""

from typing import Any

import anyio
import pytest
from attrs import define, field

from sojourn.actors.errors import MailboxFull, StoreUnavailable
from sojourn.actors.kernel.park import Parked
from sojourn.actors.session.actor import Read
from sojourn.actors.session.model import SessionState
from sojourn.runtime.shared_reads import SharedReads

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@define
class Turns:
    """A session whose turns come when told."""

    asked: list[tuple[Read, Parked]] = field(factory=list)
    full: bool = False

    def ask(self, session_id: str, read: Read, reply: Parked) -> None:
        if self.full:
            raise MailboxFull("the mailbox")
        self.asked.append((read, reply))

    def take(self, seq: int) -> tuple[Parked, Any]:
        """The oldest has its turn at this seq; its answer has not left yet."""
        read, reply = self.asked.pop(0)
        return reply, read.look(SessionState(session_id="s", seq=seq))


READ = Read(lambda state: state.seq)


async def test_reads_that_wait_together_are_one_turn() -> None:
    turns, found = Turns(), []
    reads = SharedReads(turns.ask)

    async def look() -> None:
        found.append(await reads.look("s", READ, "seq"))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(look)
        await anyio.wait_all_tasks_blocked()
        assert len(turns.asked) == 1
        reply, answer = turns.take(7)
        reply.set_result(answer)
    assert found == [7, 7, 7]


async def test_a_read_that_is_asked_after_the_turn_has_a_turn_of_its_own() -> None:
    turns, found = Turns(), {}
    reads = SharedReads(turns.ask)

    async def look(who: str) -> None:
        found[who] = await reads.look("s", READ, "seq")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look, "first")
        await anyio.wait_all_tasks_blocked()
        reply, answer = turns.take(7)  # what it saw is not durable yet
        tasks.start_soon(look, "later")
        await anyio.wait_all_tasks_blocked()
        reply.set_result(answer)
        later, answer = turns.take(8)
        later.set_result(answer)
    assert found == {"first": 7, "later": 8}


async def test_reads_of_other_kinds_and_sessions_are_not_shared() -> None:
    turns = Turns()
    reads = SharedReads(turns.ask)
    async with anyio.create_task_group() as tasks:
        for session_id, kind in (("s", "a"), ("s", "b"), ("t", "a")):
            tasks.start_soon(reads.look, session_id, READ, kind)
        await anyio.wait_all_tasks_blocked()
        assert len(turns.asked) == 3
        tasks.cancel_scope.cancel()


async def test_the_first_reader_may_leave_and_the_others_are_answered() -> None:
    turns, found = Turns(), []
    reads = SharedReads(turns.ask)

    async def look() -> None:
        found.append(await reads.look("s", READ, "seq"))

    async with anyio.create_task_group() as tasks:
        async with anyio.create_task_group() as first:
            first.start_soon(reads.look, "s", READ, "seq")
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(look)
            await anyio.wait_all_tasks_blocked()
            first.cancel_scope.cancel()
        ((_, reply),) = turns.asked
        assert not reply.done()
        reply, answer = turns.take(7)
        reply.set_result(answer)
    assert found == [7]


async def test_who_reads_after_all_readers_have_left_has_a_turn_of_its_own() -> None:
    turns, found = Turns(), []
    reads = SharedReads(turns.ask)

    async def look() -> None:
        found.append(await reads.look("s", READ, "seq"))

    async with anyio.create_task_group() as some:
        some.start_soon(look)
        some.start_soon(look)
        await anyio.wait_all_tasks_blocked()
        some.cancel_scope.cancel()
    ((_, left),) = turns.asked
    assert (
        left.done()
    )  # so the kernel does not answer it: not when its deadline passes, and not after its turn
    turns.asked.clear()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        await anyio.wait_all_tasks_blocked()
        reply, answer = turns.take(8)
        reply.set_result(answer)
    assert found == [8]


async def test_an_error_is_told_to_all_and_the_next_read_asks_anew() -> None:
    turns, errors = Turns(), []
    reads = SharedReads(turns.ask)

    async def look() -> None:
        try:
            await reads.look("s", READ, "seq")
        except StoreUnavailable as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        tasks.start_soon(look)
        await anyio.wait_all_tasks_blocked()
        turns.asked.pop(0)[1].set_exception(StoreUnavailable())
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(look)
        await anyio.wait_all_tasks_blocked()
        turns.asked.pop(0)[1].set_exception(StoreUnavailable())
    assert len(errors) == 3


async def test_a_refusal_is_the_askers_own_and_holds_nobody_up() -> None:
    turns = Turns(full=True)
    reads = SharedReads(turns.ask)
    with pytest.raises(MailboxFull):
        await reads.look("s", READ, "seq")
    turns.full = False
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reads.look, "s", READ, "seq")
        await anyio.wait_all_tasks_blocked()
        reply, answer = turns.take(7)
        reply.set_result(answer)
