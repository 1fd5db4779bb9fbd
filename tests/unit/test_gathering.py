"""One thread for small calls of many tasks: what waits goes together, order, errors, cancellation, end."""

import threading
from collections.abc import AsyncIterator, Sequence

import anyio
import anyio.to_thread
import pytest

from sojourn.actors.errors import NotOpen
from sojourn.runtime.gathering import AT_ONCE_MAX, GatheringThread

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def reader(anyio_backend: str) -> AsyncIterator[GatheringThread]:
    reader = GatheringThread("test reader")
    yield reader
    await reader.close()


class Gate:
    """A function that stays in the thread until it is opened."""

    def __init__(self) -> None:
        self._entered, self._open = threading.Event(), threading.Event()

    def wait(self) -> None:
        self._entered.set()
        self._open.wait()

    async def entered(self) -> None:
        await anyio.to_thread.run_sync(self._entered.wait)

    def open(self) -> None:
        self._open.set()


async def test_each_caller_gets_its_own_result_or_error(reader: GatheringThread) -> None:
    found: dict[int, object] = {}

    async def call(n: int) -> None:
        try:
            found[n] = await reader.run(divmod, 10, n)
        except ZeroDivisionError as error:
            found[n] = type(error)

    async with anyio.create_task_group() as tasks:
        for n in range(4):
            tasks.start_soon(call, n)
    assert found == {0: ZeroDivisionError, 1: (10, 0), 2: (5, 0), 3: (3, 1)}
    assert await reader.run(divmod, 7, 2) == (3, 1)


async def test_what_waits_is_done_in_order_and_answered_in_goes(reader: GatheringThread) -> None:
    gate = Gate()
    called: list[int] = []
    done: list[int] = []
    done_when_told: list[int] = []

    async def call(n: int) -> None:
        called.append(n)
        await reader.run(done.append, n)
        done_when_told.append(len(done))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.run, gate.wait)
        await gate.entered()
        try:
            for n in range(2 * AT_ONCE_MAX):
                tasks.start_soon(call, n)
            await anyio.wait_all_tasks_blocked()
        finally:
            gate.open()
    assert done == called
    # Nobody is answered before the rest of its go is done.
    assert min(done_when_told) >= AT_ONCE_MAX
    assert len(done) == 2 * AT_ONCE_MAX


async def test_a_cancelled_caller_goes_at_once_and_the_others_are_answered(reader: GatheringThread) -> None:
    gate = Gate()
    answers: list[tuple[int, int]] = []

    async def call() -> None:
        answers.append(await reader.run(divmod, 7, 2))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.run, gate.wait)
        await gate.entered()
        try:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await reader.run(divmod, 1, 1)
            assert scope.cancelled_caught
            tasks.start_soon(call)
            await anyio.wait_all_tasks_blocked()
        finally:
            gate.open()
    assert answers == [(3, 1)]


async def test_closing_does_what_waits_and_ends_the_thread(anyio_backend: str) -> None:
    reader = GatheringThread("closing reader")
    done: list[int] = []
    async with anyio.create_task_group() as tasks:
        for n in range(10):
            tasks.start_soon(reader.run, done.append, n)
        await anyio.wait_all_tasks_blocked()
        await reader.close()
    assert sorted(done) == list(range(10))
    assert "closing reader" not in [thread.name for thread in threading.enumerate()]
    await reader.close()
    with pytest.raises(NotOpen):
        await reader.run(done.append, 10)


def test_a_thread_outlives_the_event_loop_that_asked_it(anyio_backend: str) -> None:
    reader, gate = GatheringThread("shared reader"), Gate()

    async def leave() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reader.run, gate.wait)
            await gate.entered()
            tasks.cancel_scope.cancel()

    async def ask() -> tuple[int, int]:
        gate.open()
        answer: tuple[int, int] = await reader.run(divmod, 7, 2)
        await reader.close()
        return answer

    anyio.run(leave, backend=anyio_backend)
    assert anyio.run(ask, backend=anyio_backend) == (3, 1)


async def test_calls_that_can_be_done_together_are_and_others_before_and_behind_them_as_ever() -> None:
    done: list[tuple[str, list[int]]] = []

    def double(n: int) -> int:
        done.append(("alone", [n]))
        return 2 * n

    def double_all(asked: Sequence[tuple[int]]) -> list[int | Exception]:
        numbers = [n for (n,) in asked[:3]]
        done.append(("together", numbers))
        return [2 * n if n != 2 else ValueError(n) for n in numbers]

    gate = Gate()
    found: dict[int, object] = {}

    async def call(n: int) -> None:
        try:
            found[n] = await thread.run(double, n)
        except ValueError as error:
            found[n] = repr(error)

    thread = GatheringThread("test reader", {double: double_all})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(thread.run, gate.wait)
        await gate.entered()
        try:
            for n in (1, 2, 3, 4):
                tasks.start_soon(call, n)
                await anyio.wait_all_tasks_blocked()
            tasks.start_soon(thread.run, done.append, ("other", []))
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(call, 5)
            await anyio.wait_all_tasks_blocked()
        finally:
            gate.open()
    await thread.close()
    assert done == [("together", [1, 2, 3]), ("alone", [4]), ("other", []), ("alone", [5])]
    assert found == {1: 2, 2: "ValueError(2)", 3: 6, 4: 8, 5: 10}


async def test_where_doing_it_together_fails_every_caller_hears_it() -> None:
    def fail(_: Sequence[tuple[int]]) -> list[int]:
        raise OSError("no disk")

    def alone(n: int) -> int:
        return n

    gate = Gate()
    heard: list[int] = []

    async def call(n: int) -> None:
        with pytest.raises(OSError, match="no disk"):
            await thread.run(alone, n)
        heard.append(n)

    thread = GatheringThread("test reader", {alone: fail})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(thread.run, gate.wait)
        await gate.entered()
        try:
            for n in (1, 2):
                tasks.start_soon(call, n)
            await anyio.wait_all_tasks_blocked()
        finally:
            gate.open()
    await thread.close()
    assert sorted(heard) == [1, 2]
