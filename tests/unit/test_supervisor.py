"""The supervisor of long-running parts, under trio's virtual clock."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from sojourn.actors.kernel.restart import Intensity
from sojourn.actors.kernel.supervisor import ChildSpec, Run, Strategy, Supervisor

pytestmark = pytest.mark.trio


class Part:
    """A child whose life is written down, and which crashes when told."""

    def __init__(self, name: str, story: list[str]) -> None:
        self.name = name
        self.story = story
        self.crash = trio.Event()

    async def run(self, started: Callable[[], None]) -> None:
        self.crash = trio.Event()
        self.story.append(f"+{self.name}")
        started()
        try:
            await self.crash.wait()
            raise RuntimeError(f"{self.name} crashed")
        finally:
            self.story.append(f"-{self.name}")


def supervise(strategy: Strategy, parts: list[Part], **spec: Any) -> Supervisor:
    return Supervisor(strategy, [ChildSpec(child_id=part.name, run=part.run, **spec) for part in parts])


@pytest.fixture
def story() -> list[str]:
    return []


@pytest.fixture
def parts(story: list[str]) -> list[Part]:
    return [Part(name, story) for name in "abc"]


async def started(nursery: trio.Nursery, run: Run) -> None:
    event = trio.Event()
    nursery.start_soon(run, event.set)
    await event.wait()


async def test_children_start_in_order_and_stop_in_reverse(parts: list[Part], story: list[str]) -> None:
    async with trio.open_nursery() as nursery:
        await started(nursery, supervise(Strategy.ONE_FOR_ONE, parts).run)
        nursery.cancel_scope.cancel()
    assert story == ["+a", "+b", "+c", "-c", "-b", "-a"]


async def test_one_for_one_starts_the_crashed_child_alone(
    parts: list[Part], story: list[str], autojump_clock: trio.testing.MockClock
) -> None:
    supervisor = supervise(Strategy.ONE_FOR_ONE, parts)
    async with trio.open_nursery() as nursery:
        await started(nursery, supervisor.run)
        del story[:]
        parts[1].crash.set()
        await trio.sleep(1)
        assert story == ["-b", "+b"]
        assert [child.restarts for child in supervisor.statistics()] == [0, 1, 0]
        nursery.cancel_scope.cancel()


async def test_rest_for_one_starts_those_that_stand_on_it_too(
    parts: list[Part], story: list[str], autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        await started(nursery, supervise(Strategy.REST_FOR_ONE, parts).run)
        del story[:]
        parts[1].crash.set()
        await trio.sleep(1)
        assert story == ["-b", "-c", "+b", "+c"]
        nursery.cancel_scope.cancel()


async def test_a_child_beyond_its_intensity_is_set_aside_and_its_siblings_stay(
    parts: list[Part], story: list[str], autojump_clock: trio.testing.MockClock
) -> None:
    supervisor = supervise(Strategy.ONE_FOR_ONE, parts, intensity=Intensity(restarts_max=2))
    async with trio.open_nursery() as nursery:
        await started(nursery, supervisor.run)
        for _ in range(3):
            parts[0].crash.set()
            await trio.sleep(5)
        assert [child.state for child in supervisor.statistics()] == ["quarantined", "running", "running"]
        assert "a crashed" in str(supervisor.statistics()[0].last_error)
        nursery.cancel_scope.cancel()


async def test_a_child_that_falls_again_while_it_waits_is_started_once(
    parts: list[Part], story: list[str], autojump_clock: trio.testing.MockClock
) -> None:
    intensity = Intensity(backoff_s=1.0, jitter=0.0)
    async with trio.open_nursery() as nursery:
        await started(nursery, supervise(Strategy.REST_FOR_ONE, parts, intensity=intensity).run)
        del story[:]
        parts[1].crash.set()
        await trio.sleep(0.5)
        parts[0].crash.set()
        await trio.sleep(10)
        assert story == ["-b", "-c", "-a", "+a", "+b", "+c"]
        nursery.cancel_scope.cancel()
    assert story[-3:] == ["-c", "-b", "-a"]


async def test_an_essential_child_beyond_its_intensity_stops_the_tree(
    parts: list[Part], story: list[str], autojump_clock: trio.testing.MockClock
) -> None:
    supervisor = supervise(Strategy.ONE_FOR_ONE, parts, intensity=Intensity(restarts_max=0), essential=True)
    with pytest.raises(BaseExceptionGroup) as caught:  # noqa: PT012 - the nursery is what raises
        async with trio.open_nursery() as nursery:
            await started(nursery, supervisor.run)
            parts[1].crash.set()
    assert caught.group_contains(RuntimeError, match="b crashed")
    assert sorted(story) == ["+a", "+b", "+c", "-a", "-b", "-c"]


async def test_a_fatal_error_stops_the_whole_tree_and_comes_out(parts: list[Part], story: list[str]) -> None:
    supervisor = supervise(Strategy.ONE_FOR_ONE, parts, fatal=(RuntimeError,))
    with pytest.raises(BaseExceptionGroup) as caught:  # noqa: PT012 - the nursery is what raises
        async with trio.open_nursery() as nursery:
            await started(nursery, supervisor.run)
            parts[1].crash.set()
    assert caught.group_contains(RuntimeError, match="b crashed")
    assert sorted(story) == ["+a", "+b", "+c", "-a", "-b", "-c"]


async def test_a_child_that_returns_has_crashed(autojump_clock: trio.testing.MockClock) -> None:
    async def run(started: Callable[[], None]) -> None:
        started()

    supervisor = Supervisor(
        Strategy.ONE_FOR_ONE, [ChildSpec(child_id="a", run=run, intensity=Intensity(restarts_max=1))]
    )
    async with trio.open_nursery() as nursery:
        await started(nursery, supervisor.run)
        await trio.sleep(60)
        assert supervisor.statistics()[0].state == "quarantined"
        nursery.cancel_scope.cancel()


async def test_the_others_stop_although_one_does_not_within_its_time(
    parts: list[Part], story: list[str], autojump_clock: trio.testing.MockClock
) -> None:
    stopped_at: list[float] = []

    async def stubborn(started: Callable[[], None]) -> None:
        started()
        with trio.CancelScope(shield=True):
            while not stopped_at:
                await trio.sleep(1.0)
                if "-a" in story:
                    stopped_at.append(trio.current_time())

    children = [ChildSpec(child_id=part.name, run=part.run) for part in parts]
    children.append(ChildSpec(child_id="stubborn", run=stubborn, shutdown_s=2.0))
    supervisor = Supervisor(Strategy.ONE_FOR_ONE, children)
    async with trio.open_nursery() as nursery:
        await started(nursery, supervisor.run)
        began = trio.current_time()
        nursery.cancel_scope.cancel()
    assert story[-3:] == ["-c", "-b", "-a"]
    assert 2.0 <= stopped_at[0] - began <= 4.0
