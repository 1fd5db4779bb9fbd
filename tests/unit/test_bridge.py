"""One thread that owns one blocking thing: order, errors, cancellation, end."""

import gc
import subprocess
import sys
import threading
from collections.abc import AsyncIterator

import anyio
import anyio.to_thread
import pytest

from sojourn.actors.errors import NotOpen
from sojourn.runtime.bridge import OwnerThread

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def owner(anyio_backend: str) -> AsyncIterator[OwnerThread]:
    owner = OwnerThread("test owner")
    yield owner
    await owner.close()


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


async def test_functions_run_in_the_one_thread(owner: OwnerThread) -> None:
    assert await owner.run(threading.current_thread) is await owner.run(threading.current_thread)
    assert await owner.run(threading.current_thread) is not threading.current_thread()


async def test_results_and_exceptions_come_back(owner: OwnerThread) -> None:
    assert await owner.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await owner.run(divmod, 7, 0)
    assert await owner.run(divmod, 8, 2) == (4, 0)


async def test_functions_run_in_the_order_of_the_calls(owner: OwnerThread) -> None:
    called: list[int] = []
    done: list[int] = []

    async def call(n: int) -> None:
        called.append(n)
        await owner.run(done.append, n)

    async with anyio.create_task_group() as tasks:
        for n in range(100):
            tasks.start_soon(call, n)
    assert len(done) == 100
    assert done == called


async def test_a_cancelled_caller_goes_at_once_and_its_function_is_run(owner: OwnerThread) -> None:
    entered, gate = threading.Event(), threading.Event()
    done: list[str] = []

    def wait_inside() -> None:
        entered.set()
        gate.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(owner.run, wait_inside)
        try:
            await anyio.to_thread.run_sync(entered.wait)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await owner.run(done.append, "queued")
            assert scope.cancelled_caught
            assert done == []
        finally:
            gate.set()
    assert await owner.run(list, done) == ["queued"]


async def test_closing_drains_the_queue_runs_what_is_last_and_ends_the_thread(anyio_backend: str) -> None:
    owner = OwnerThread("draining owner")
    done: list[int] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        await owner.run(done.append, 1)
    await owner.close(lambda: done.append(2))
    assert done == [1, 2]
    assert threads("draining owner") == []
    await owner.close()
    with pytest.raises(NotOpen):
        await owner.run(done.append, 3)


async def test_a_cancelled_close_waits_for_the_end_and_lets_others_run(anyio_backend: str) -> None:
    owner = OwnerThread("cancelled owner")
    gate = threading.Event()
    opened: list[bool] = []

    async def open_gate() -> None:
        gate.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_gate)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await owner.close(lambda: opened.append(gate.wait(10)))
        assert threads("cancelled owner") == []
    assert opened == [True]


async def test_what_is_last_may_fail(anyio_backend: str) -> None:
    owner = OwnerThread("failing owner")
    with pytest.raises(ZeroDivisionError):
        await owner.close(lambda: 1 // 0)
    assert threads("failing owner") == []


async def test_idle_is_called_once_after_work(anyio_backend: str) -> None:
    called = threading.Semaphore(0)
    owner = OwnerThread("idle owner", idle=called.release, idle_after_s=0)
    await owner.run(int)
    assert await anyio.to_thread.run_sync(called.acquire)
    await owner.close()
    assert not called.acquire(blocking=False)


def test_an_owner_that_nobody_holds_ends_its_thread(anyio_backend: str) -> None:
    owner = OwnerThread("forgotten owner")
    (thread,) = threads("forgotten owner")
    del owner
    gc.collect()
    thread.join()


NEVER_CLOSED = """
import anyio, sys
from sojourn.runtime.bridge import OwnerThread

async def main():
    kept.append(OwnerThread("never closed"))
    with anyio.CancelScope() as scope:
        scope.cancel()
        await kept[0].run(lambda: (start.wait(), sys.stdout.write("written"), sys.stdout.flush()))

import atexit, threading
kept, start = [], threading.Event()
atexit.register(start.set)
anyio.run(main)
"""


def test_an_owner_that_was_never_closed_does_its_work_and_lets_the_process_exit(anyio_backend: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NEVER_CLOSED], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "written"


def test_a_caller_whose_loop_has_ended_stops_nothing(anyio_backend: str) -> None:
    owner = OwnerThread("surviving owner")
    gate = threading.Event()

    async def leave() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await owner.run(gate.wait)

    anyio.run(leave, backend=anyio_backend)
    gate.set()

    async def come_back() -> int:
        try:
            return await owner.run(lambda: 42)
        finally:
            await owner.close()

    assert anyio.run(come_back, backend=anyio_backend) == 42
