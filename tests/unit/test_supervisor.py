"""The supervisor of long-running parts, on both event loops and virtual time."""

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup

from sojourn.actors.kernel.restart import Intensity, Restart
from sojourn.actors.kernel.supervisor import ChildSpec, Run, Strategy, Supervisor

from ..support.jumping import virtual

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return virtual(request.param)


class Part:
    """A child whose life is written down, and which crashes when told.

    Attributes:
        mute: it does not say that it has started.
        crashing: it crashes at its next start.
        returning: it returns where it would crash.
        lingers_s: so long it goes on once it is told to stop.
    """

    def __init__(self, name: str, story: list[str]) -> None:
        self.name = name
        self.story = story
        self.mute = self.crashing = self.returning = False
        self.lingers_s = 0.0
        self.crash = anyio.Event()

    async def run(self, started: Callable[[], None]) -> None:
        self.crash = anyio.Event()
        self.story.append(f"+{self.name}")
        try:
            if self.crashing:
                raise RuntimeError(f"{self.name} crashed at its start")
            if not self.mute:
                started()
            await self.crash.wait()
            if not self.returning:
                raise RuntimeError(f"{self.name} crashed")
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(self.lingers_s)
            self.story.append(f"-{self.name}")


def supervise(strategy: Strategy, parts: list[Part], **spec: Any) -> Supervisor:
    return Supervisor(strategy, [ChildSpec(child_id=part.name, run=part.run, **spec) for part in parts])


@pytest.fixture
def story() -> list[str]:
    return []


@pytest.fixture
def parts(story: list[str]) -> list[Part]:
    return [Part(name, story) for name in "abc"]


async def started(tasks: TaskGroup, run: Run) -> None:
    event = anyio.Event()

    async def go() -> None:
        await run(event.set)

    tasks.start_soon(go)
    await event.wait()


async def test_children_start_in_order_and_stop_in_reverse(parts: list[Part], story: list[str]) -> None:
    async with anyio.create_task_group() as tasks:
        await started(tasks, supervise(Strategy.ONE_FOR_ONE, parts).run)
        tasks.cancel_scope.cancel()
    assert story == ["+a", "+b", "+c", "-c", "-b", "-a"]


async def test_one_for_one_starts_the_crashed_child_alone(parts: list[Part], story: list[str]) -> None:
    supervisor = supervise(Strategy.ONE_FOR_ONE, parts)
    async with anyio.create_task_group() as tasks:
        await started(tasks, supervisor.run)
        del story[:]
        parts[1].crash.set()
        await anyio.sleep(1)
        assert story == ["-b", "+b"]
        assert [child.restarts for child in supervisor.statistics()] == [0, 1, 0]
        tasks.cancel_scope.cancel()


async def test_rest_for_one_starts_those_that_stand_on_it_too(parts: list[Part], story: list[str]) -> None:
    async with anyio.create_task_group() as tasks:
        await started(tasks, supervise(Strategy.REST_FOR_ONE, parts).run)
        del story[:]
        parts[1].crash.set()
        await anyio.sleep(1)
        assert story == ["-b", "-c", "+b", "+c"]
        tasks.cancel_scope.cancel()


async def test_a_child_beyond_its_intensity_is_set_aside_and_its_siblings_stay(
    parts: list[Part], story: list[str]
) -> None:
    supervisor = supervise(Strategy.ONE_FOR_ONE, parts, intensity=Intensity(restarts_max=2))
    async with anyio.create_task_group() as tasks:
        await started(tasks, supervisor.run)
        for _ in range(3):
            parts[0].crash.set()
            await anyio.sleep(5)
        assert [child.state for child in supervisor.statistics()] == ["quarantined", "running", "running"]
        assert "a crashed" in str(supervisor.statistics()[0].last_error)
        tasks.cancel_scope.cancel()


async def test_a_child_that_falls_again_while_it_waits_is_started_once(
    parts: list[Part], story: list[str]
) -> None:
    intensity = Intensity(backoff_s=1.0, jitter=0.0)
    async with anyio.create_task_group() as tasks:
        await started(tasks, supervise(Strategy.REST_FOR_ONE, parts, intensity=intensity).run)
        del story[:]
        parts[1].crash.set()
        await anyio.sleep(0.5)
        parts[0].crash.set()
        await anyio.sleep(10)
        assert story == ["-b", "-c", "-a", "+a", "+b", "+c"]
        tasks.cancel_scope.cancel()
    assert story[-3:] == ["-c", "-b", "-a"]


async def test_an_essential_child_beyond_its_intensity_stops_the_tree(
    parts: list[Part], story: list[str]
) -> None:
    supervisor = supervise(Strategy.ONE_FOR_ONE, parts, intensity=Intensity(restarts_max=0), essential=True)
    with pytest.raises(BaseExceptionGroup) as caught:  # noqa: PT012 - the task group is what raises
        async with anyio.create_task_group() as tasks:
            await started(tasks, supervisor.run)
            parts[1].crash.set()
    assert caught.group_contains(RuntimeError, match="b crashed")
    assert sorted(story) == ["+a", "+b", "+c", "-a", "-b", "-c"]


async def test_a_fatal_error_stops_the_whole_tree_and_comes_out(parts: list[Part], story: list[str]) -> None:
    supervisor = supervise(Strategy.ONE_FOR_ONE, parts, fatal=(RuntimeError,))
    with pytest.raises(BaseExceptionGroup) as caught:  # noqa: PT012 - the task group is what raises
        async with anyio.create_task_group() as tasks:
            await started(tasks, supervisor.run)
            parts[1].crash.set()
    assert caught.group_contains(RuntimeError, match="b crashed")
    assert sorted(story) == ["+a", "+b", "+c", "-a", "-b", "-c"]


async def test_a_child_that_returns_has_crashed() -> None:
    async def run(started: Callable[[], None]) -> None:
        started()

    supervisor = Supervisor(
        Strategy.ONE_FOR_ONE, [ChildSpec(child_id="a", run=run, intensity=Intensity(restarts_max=1))]
    )
    async with anyio.create_task_group() as tasks:
        await started(tasks, supervisor.run)
        await anyio.sleep(60)
        assert supervisor.statistics()[0].state == "quarantined"
        tasks.cancel_scope.cancel()


async def test_the_others_stop_although_one_does_not_within_its_time(
    parts: list[Part], story: list[str]
) -> None:
    stopped_at: list[float] = []

    async def stubborn(started: Callable[[], None]) -> None:
        started()
        with anyio.CancelScope(shield=True):
            while not stopped_at:
                await anyio.sleep(1.0)
                if "-a" in story:
                    stopped_at.append(anyio.current_time())

    children = [ChildSpec(child_id=part.name, run=part.run) for part in parts]
    children.append(ChildSpec(child_id="stubborn", run=stubborn, shutdown_s=2.0))
    supervisor = Supervisor(Strategy.ONE_FOR_ONE, children)
    async with anyio.create_task_group() as tasks:
        await started(tasks, supervisor.run)
        began = anyio.current_time()
        tasks.cancel_scope.cancel()
    assert story[-3:] == ["-c", "-b", "-a"]
    assert 2.0 <= stopped_at[0] - began <= 4.0


async def test_one_for_all_starts_all_of_them_in_order(parts: list[Part], story: list[str]) -> None:
    async with anyio.create_task_group() as tasks:
        await started(tasks, supervise(Strategy.ONE_FOR_ALL, parts).run)
        del story[:]
        parts[1].crash.set()
        await anyio.sleep(1)
        assert story == ["-b", "-c", "-a", "+a", "+b", "+c"]
        tasks.cancel_scope.cancel()


async def test_a_child_that_does_not_say_in_time_that_it_has_started_has_crashed(
    parts: list[Part], story: list[str]
) -> None:
    parts[1].mute = True
    supervisor = supervise(Strategy.REST_FOR_ONE, parts, start_s=10.0, intensity=Intensity(jitter=0.0))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervisor.run, lambda: None)
        await anyio.sleep(9.9)
        assert story == ["+a", "+b"]
        assert [child.state for child in supervisor.statistics()] == ["running", "starting", "stopped"]
        parts[1].mute = False
        await anyio.sleep(1.0)
        assert story == ["+a", "+b", "-b", "+b", "+c"]
        told = supervisor.statistics()[1]
        assert (told.state, told.restarts) == ("running", 1)
        assert "b did not say within 10 s that it has started" in str(told.last_error)
        tasks.cancel_scope.cancel()


async def test_what_stands_on_a_child_that_crashes_at_its_start_waits_for_it(
    parts: list[Part], story: list[str]
) -> None:
    parts[0].crashing = True
    supervisor = supervise(Strategy.REST_FOR_ONE, parts, intensity=Intensity(backoff_s=1.0, jitter=0.0))
    async with anyio.create_task_group() as tasks:
        await started(tasks, supervisor.run)
        await anyio.sleep(2.5)
        assert story == ["+a", "-a", "+a", "-a"]
        parts[0].crashing = False
        await anyio.sleep(1.0)
        assert story[4:] == ["+a", "+b", "+c"]
        assert [child.restarts for child in supervisor.statistics()] == [2, 0, 0]
        tasks.cancel_scope.cancel()


async def test_what_waited_for_a_child_that_is_set_aside_starts_without_it(
    parts: list[Part], story: list[str]
) -> None:
    parts[0].crashing = True
    supervisor = supervise(Strategy.REST_FOR_ONE, parts, intensity=Intensity(restarts_max=1))
    async with anyio.create_task_group() as tasks:
        await started(tasks, supervisor.run)
        await anyio.sleep(5)
        assert story == ["+a", "-a", "+a", "-a", "+b", "+c"]
        assert [child.state for child in supervisor.statistics()] == ["quarantined", "running", "running"]
        tasks.cancel_scope.cancel()


async def test_two_that_fall_together_start_in_order_although_the_later_pauses_less(
    parts: list[Part], story: list[str]
) -> None:
    intensity = Intensity(backoff_s=1.0, jitter=0.0)
    async with anyio.create_task_group() as tasks:
        await started(tasks, supervise(Strategy.REST_FOR_ONE, parts, intensity=intensity).run)
        parts[0].crash.set()
        await anyio.sleep(10)
        del story[:]
        parts[0].crash.set()  # pauses for 2 s by now
        parts[2].crash.set()  # and this one for 1 s
        await anyio.sleep(10)
        assert [word for word in story if word.startswith("+")] == ["+a", "+b", "+c"]
        tasks.cancel_scope.cancel()


async def test_a_transient_child_may_end_and_starts_again_only_after_a_crash(
    parts: list[Part], story: list[str]
) -> None:
    supervisor = supervise(Strategy.ONE_FOR_ALL, parts, restart=Restart.TRANSIENT)
    async with anyio.create_task_group() as tasks:
        await started(tasks, supervisor.run)
        parts[2].returning = True
        parts[2].crash.set()
        await anyio.sleep(60)
        assert [child.state for child in supervisor.statistics()] == ["running", "running", "ended"]
        del story[:]
        parts[1].crash.set()
        await anyio.sleep(60)
        assert story == ["-b", "-a", "+a", "+b"]
        tasks.cancel_scope.cancel()


async def test_a_temporary_child_is_never_started_again(parts: list[Part], story: list[str]) -> None:
    specs = [
        ChildSpec(child_id="a", run=parts[0].run),
        ChildSpec(child_id="b", run=parts[1].run, restart=Restart.TEMPORARY),
        ChildSpec(child_id="c", run=parts[2].run, restart=Restart.TEMPORARY),
    ]
    supervisor = Supervisor(Strategy.ONE_FOR_ALL, specs)
    async with anyio.create_task_group() as tasks:
        await started(tasks, supervisor.run)
        parts[1].crash.set()
        await anyio.sleep(60)
        assert [child.state for child in supervisor.statistics()] == ["running", "ended", "running"]
        parts[0].crash.set()
        await anyio.sleep(60)
        assert [child.state for child in supervisor.statistics()] == ["running", "ended", "stopped"]
        assert story == ["+a", "+b", "+c", "-b", "-a", "-c", "+a"]
        tasks.cancel_scope.cancel()


async def test_an_essential_child_that_is_not_started_again_stops_the_tree(parts: list[Part]) -> None:
    supervisor = supervise(Strategy.ONE_FOR_ONE, parts, restart=Restart.TEMPORARY, essential=True)
    with pytest.raises(BaseExceptionGroup) as caught:  # noqa: PT012 - the task group is what raises
        async with anyio.create_task_group() as tasks:
            await started(tasks, supervisor.run)
            parts[1].crash.set()
    assert caught.group_contains(RuntimeError, match="b crashed", depth=1)


async def test_a_quarantined_child_that_is_released_starts_with_what_stands_on_it(
    parts: list[Part], story: list[str]
) -> None:
    supervisor = supervise(Strategy.REST_FOR_ONE, parts, intensity=Intensity(restarts_max=1))
    async with anyio.create_task_group() as tasks:
        await started(tasks, supervisor.run)
        assert supervisor.release("b") is False
        for _ in range(2):
            parts[1].crash.set()
            await anyio.sleep(5)
        assert supervisor.statistics()[1].state == "quarantined"
        del story[:]
        assert supervisor.release("b") is True
        assert supervisor.release("b") is False
        await anyio.sleep(1)
        assert story == ["-c", "+b", "+c"]
        parts[1].crash.set()  # its budget is new
        await anyio.sleep(5)
        assert [child.state for child in supervisor.statistics()] == ["running"] * 3
        tasks.cancel_scope.cancel()
    with pytest.raises(ValueError, match="no child 'x'; there are a, b, c"):
        supervisor.release("x")


async def test_a_child_that_is_stuck_starts_again_only_once_it_has_ended(
    parts: list[Part], story: list[str]
) -> None:
    supervisor = supervise(Strategy.REST_FOR_ONE, parts, shutdown_s=2.0)
    parts[1].lingers_s = 30.0
    async with anyio.create_task_group() as tasks:
        await started(tasks, supervisor.run)
        del story[:]
        parts[0].crash.set()
        await anyio.sleep(20)
        assert story == ["-a", "-c", "+a"] or story == ["-c", "-a", "+a"]
        assert [child.state for child in supervisor.statistics()] == ["running", "stuck", "backoff"]
        parts[1].lingers_s = 0.0
        await anyio.sleep(20)
        assert story[3:] == ["-b", "+b", "+c"]
        assert [child.state for child in supervisor.statistics()] == ["running"] * 3
        tasks.cancel_scope.cancel()


async def test_a_supervisor_is_a_child_of_another(parts: list[Part], story: list[str]) -> None:
    inner = supervise(Strategy.ONE_FOR_ONE, parts[1:], intensity=Intensity(restarts_max=1), essential=True)
    outer = Supervisor(
        Strategy.REST_FOR_ONE, [ChildSpec(child_id="a", run=parts[0].run), inner.as_child("inner")]
    )
    async with anyio.create_task_group() as tasks:
        await started(tasks, outer.run)
        parts[1].crash.set()  # the inner one's own affair
        await anyio.sleep(5)
        assert story == ["+a", "+b", "+c", "-b", "+b"]
        parts[1].crash.set()  # beyond its budget: the inner one falls, and is started anew
        await anyio.sleep(5)
        assert story[5:] == ["-b", "-c", "+b", "+c"]
        told = outer.statistics()[1]
        assert (told.child_id, told.state, told.restarts) == ("inner", "running", 1)
        assert told.last_error == "RuntimeError('b crashed')"
        assert [(child.child_id, child.state) for child in told.children] == [
            ("b", "running"),
            ("c", "running"),
        ]
        parts[0].crash.set()
        await anyio.sleep(5)
        assert story[9:] == ["-a", "-c", "-b", "+a", "+b", "+c"]
        tasks.cancel_scope.cancel()
    assert story[15:] == ["-c", "-b", "-a"]


async def test_an_inner_fatal_error_comes_out_as_it_was_raised(parts: list[Part], story: list[str]) -> None:
    inner = supervise(Strategy.ONE_FOR_ONE, parts, fatal=(RuntimeError,))
    outer = Supervisor(Strategy.ONE_FOR_ONE, [inner.as_child("inner", fatal=(RuntimeError,))])
    with pytest.raises(BaseExceptionGroup) as caught:  # noqa: PT012 - the task group is what raises
        async with anyio.create_task_group() as tasks:
            await started(tasks, outer.run)
            parts[2].crash.set()
    assert caught.group_contains(RuntimeError, match="c crashed", depth=1)
    assert sorted(story) == ["+a", "+b", "+c", "-a", "-b", "-c"]


async def test_leaving_while_children_start_stops_those_that_have_begun(
    parts: list[Part], story: list[str]
) -> None:
    parts[1].mute = True
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervise(Strategy.ONE_FOR_ONE, parts).run, lambda: None)
        await anyio.sleep(1)
        tasks.cancel_scope.cancel()
    assert story == ["+a", "+b", "-b", "-a"]
