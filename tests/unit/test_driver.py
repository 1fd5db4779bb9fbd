"""The driver: the same kernel on asyncio and on trio; asks, jobs, timers, starts, cancelled askers."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from sojourn.actors.errors import DeadlineExceeded, JobCancelled, JobUnknown, Stopped
from sojourn.actors.kernel.actor import Actor, ActorContext, ActorSpec, JobDone
from sojourn.actors.kernel.driver import Driver
from sojourn.actors.kernel.park import parking
from sojourn.actors.kernel.scheduler import Kernel

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Echo:
    def __init__(self, context: ActorContext) -> None:
        self.context = context
        self.heard: list[Any] = []

    def receive(self, message: Any) -> Any:
        self.heard.append(message)
        match message:
            case ("job", run):
                self.context.start_job("j", run, deadline_s=0.05)
            case ("slow", run):
                self.context.start_job("j", run)
            case ("cancel", key):
                self.context.cancel_job(key)
            case ("timer", delay_s):
                self.context.set_timer("t", delay_s, "rang")
            case "heard":
                return list(self.heard)
        return message

    def close_slot(self) -> None:
        return None


@asynccontextmanager
async def driven(clock: Any = time.monotonic) -> AsyncIterator[Kernel]:
    async def start(context: ActorContext) -> Actor:
        await anyio.lowlevel.checkpoint()
        return Echo(context)

    kernel = Kernel(clock=clock, dynamic=ActorSpec(start=start))
    async with anyio.create_task_group() as tasks:
        ready = anyio.Event()
        tasks.start_soon(Driver(kernel).run, ready.set)
        await ready.wait()
        yield kernel
        tasks.cancel_scope.cancel()


async def ends(kernel: Kernel) -> list[JobDone]:
    """What the actor has heard of its jobs, once that is something."""
    with anyio.fail_after(10):
        while not (
            heard := [m for m in await kernel.ask("a", "heard", parking()()) if isinstance(m, JobDone)]
        ):
            await anyio.sleep(0.005)
    return heard


async def test_an_ask_is_answered() -> None:
    async with driven() as kernel:
        assert await kernel.ask("a", "x", parking()()) == "x"


async def test_many_askers_are_each_answered_with_their_own() -> None:
    answers = []

    async def asker(kernel: Kernel, n: int) -> None:
        for i in range(20):
            answers.append(await kernel.ask(f"a{n % 7}", (n, i), parking()()) == (n, i))

    async with driven() as kernel, anyio.create_task_group() as tasks:
        for n in range(50):
            tasks.start_soon(asker, kernel, n)
    assert answers == [True] * 1000


async def test_a_cancelled_asker_leaves_its_message_and_nothing_hanging() -> None:
    async with driven() as kernel:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await kernel.ask("a", "x", parking()())
        assert await kernel.ask("a", "heard", parking()()) == ["x", "heard"]
        assert kernel.statistics().deadlines == 0


async def test_a_deadline_passes_although_nothing_else_happens() -> None:
    never = anyio.Event()

    async def start(context: ActorContext) -> Actor:
        await never.wait()
        raise AssertionError

    kernel = Kernel(clock=anyio.current_time, dynamic=ActorSpec(start=start))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Driver(kernel).run, lambda: None)
        with pytest.raises(DeadlineExceeded):
            await kernel.ask("a", "x", parking()(), deadline_s=0.01)
        tasks.cancel_scope.cancel()


async def test_a_timer_rings_although_nothing_else_happens() -> None:
    async with driven() as kernel:
        kernel.tell("a", ("timer", 0.01))
        with anyio.fail_after(10):
            while "rang" not in await kernel.ask("a", "heard", parking()()):
                await anyio.sleep(0.005)


@pytest.mark.parametrize("outcome", ["value", "error", "late"])
async def test_a_jobs_end_is_a_turn_of_its_actor(outcome: str) -> None:
    async def work() -> str:
        if outcome == "error":
            raise ValueError("no")
        if outcome == "late":
            await anyio.sleep_forever()
        return "done"

    async with driven() as kernel:
        kernel.tell("a", ("job", work))
        (end,) = await ends(kernel)
    expected = {"value": type(None), "error": ValueError, "late": TimeoutError}[outcome]
    assert isinstance(end.error, expected)
    assert end.value == ("done" if outcome == "value" else None)


async def test_a_cancelled_job_stops_and_its_actor_hears_that_once() -> None:
    story: list[str] = []

    async def work() -> None:
        try:
            story.append("began")
            await anyio.sleep_forever()
        finally:
            story.append("stopped")

    async with driven() as kernel:
        kernel.tell("a", ("slow", work))
        with anyio.fail_after(10):
            while not story:
                await anyio.sleep(0.005)
        kernel.tell("a", ("cancel", "j"))
        (end,) = await ends(kernel)
        assert isinstance(end.error, JobCancelled)
        with anyio.fail_after(10):
            while story != ["began", "stopped"]:
                await anyio.sleep(0.005)
        assert kernel.statistics().jobs == 0


async def test_a_job_whose_driver_stops_is_unknown_and_is_not_run_again() -> None:
    runs: list[str] = []

    async def work() -> None:
        runs.append("began")
        await anyio.sleep_forever()

    async def start(context: ActorContext) -> Actor:
        return Echo(context)

    kernel = Kernel(clock=time.monotonic, dynamic=ActorSpec(start=start))
    kernel.tell("a", ("slow", work))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Driver(kernel).run, lambda: None)
        with anyio.fail_after(10):
            while not runs:
                await anyio.sleep(0.005)
        tasks.cancel_scope.cancel()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Driver(kernel).run, lambda: None)
        (end,) = await ends(kernel)
        tasks.cancel_scope.cancel()
    assert isinstance(end.error, JobUnknown)
    assert runs == ["began"]


async def test_an_actor_that_was_starting_when_its_driver_stopped_starts_with_the_next() -> None:
    gate = anyio.Event()
    starts = []

    async def start(context: ActorContext) -> Actor:
        starts.append(context.actor_id)
        await gate.wait()
        return Echo(context)

    kernel = Kernel(clock=time.monotonic, dynamic=ActorSpec(start=start))
    kernel.tell("a", "x")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Driver(kernel).run, lambda: None)
        while not starts:
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    gate.set()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Driver(kernel).run, lambda: None)
        assert await kernel.ask("a", "heard", parking()()) == ["x", "heard"]
        tasks.cancel_scope.cancel()
    assert starts == ["a", "a"]


async def test_whoever_waits_when_the_kernel_stops_is_told() -> None:
    kernel = Kernel(clock=time.monotonic, dynamic=ActorSpec(start=Echo))  # type: ignore[arg-type]
    reply = kernel.ask("a", "x", parking()())
    kernel.stop()
    with pytest.raises(Stopped):
        await reply


async def test_a_storm_of_starts_takes_as_many_tasks_as_may_start_at_once() -> None:
    tasks_of_starts: list[Any] = []

    async def start(context: ActorContext) -> Actor:
        tasks_of_starts.append(anyio.get_current_task().id)
        await anyio.lowlevel.checkpoint()
        return Echo(context)

    kernel = Kernel(clock=time.monotonic, dynamic=ActorSpec(start=start), starts_max=3)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Driver(kernel).run, lambda: None)
        asked = [kernel.ask(str(n), n, parking()()) for n in range(20)]
        assert [await reply for reply in asked] == list(range(20))
        tasks.cancel_scope.cancel()
    assert len(tasks_of_starts) == 20
    assert len(set(tasks_of_starts)) <= 3
