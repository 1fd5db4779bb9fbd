"""Death watch, by hand: exactly one Down, whatever happens; bounded. And whom starts admit first."""

from typing import Any

import pytest

from sojourn.actors.errors import StorageFull
from sojourn.actors.kernel.actor import ActorContext, ActorSpec
from sojourn.actors.kernel.restart import Intensity
from sojourn.actors.kernel.watch import Down, DownReason, Watches

from ..support.kernel import Hand


class Guard:
    """Monitors whom it is told to, and keeps each Down."""

    def __init__(self, context: ActorContext, heard: list[tuple[str, Down]], broken: set[str]) -> None:
        if context.actor_id in broken:
            raise RuntimeError("its history cannot be folded")
        self.context = context
        self.heard = heard
        self.downs: list[Down] = []

    def receive(self, message: Any) -> Any:
        match message:
            case ("monitor", actor_id):
                self.context.monitor(actor_id)
            case ("unmonitor", actor_id):
                self.context.unmonitor(actor_id)
            case "crash":
                raise RuntimeError("boom")
            case Down():
                self.downs.append(message)

    def close_slot(self) -> Any:
        downs, self.downs = self.downs, []
        return downs or None


PLACES: dict[str, tuple[int, int]] = {"w": (3, 1), "a": (3, 7), "b": (3, 9)}


@pytest.fixture
def heard() -> list[tuple[str, Down]]:
    return []


@pytest.fixture
def broken() -> set[str]:
    return set()


@pytest.fixture
def hand(heard: list[tuple[str, Down]], broken: set[str]) -> Hand:
    return Hand(
        lambda context: Guard(context, heard, broken),
        spec={"intensity": Intensity(restarts_max=2)},
        kernel_options={"place": PLACES.get},
    )


def settle(hand: Hand, heard: list[tuple[str, Down]]) -> None:
    """Run until nothing happens for a minute; what a committed turn heard counts as heard."""
    for _ in range(20):
        hand.pass_time(3.0)
        for cell in hand.kernel.outbox:
            heard += [(cell.actor_id, down) for down in cell.record]
        hand.commit()
    assert hand.conserved()


def watch(hand: Hand, heard: list[tuple[str, Down]], actor_id: str = "a") -> None:
    hand.kernel.tell("w", ("monitor", actor_id))
    settle(hand, heard)


def test_a_crash_is_told_once_with_the_actors_place(hand: Hand, heard: list[tuple[str, Down]]) -> None:
    watch(hand, heard)
    watch(hand, heard)  # again: still one
    for _ in range(2):
        hand.ask("a", "crash")
        settle(hand, heard)
    assert heard == [("w", Down(actor_id="a", reason=DownReason.CRASHED, epoch=3, seq=7))]
    watch(hand, heard)  # it may be watched anew
    hand.ask("a", "crash")
    settle(hand, heard)
    assert len(heard) == 2
    assert hand.kernel.statistics().monitors == 0


def test_passivation_is_no_death_and_removal_is(hand: Hand, heard: list[tuple[str, Down]]) -> None:
    hand.ask("a", "x")
    watch(hand, heard)
    assert hand.kernel.passivate("a")
    assert hand.kernel.passivate("w")  # it comes back to hear of it
    settle(hand, heard)
    assert heard == []
    hand.kernel.removed("a")
    settle(hand, heard)
    assert heard == [("w", Down(actor_id="a", reason=DownReason.REMOVED, epoch=3, seq=7))]


def test_quarantine_is_told_and_told_at_once_to_who_comes_later(
    hand: Hand, heard: list[tuple[str, Down]], broken: set[str]
) -> None:
    broken.add("a")
    for _ in range(3):
        hand.kernel.cells.get("a") or hand.ask("a", "x")
        hand.run()
        hand.pass_time(0.01)
    settle(hand, heard)
    watch(hand, heard)
    assert heard == [("w", Down(actor_id="a", reason=DownReason.QUARANTINED, epoch=3, seq=7))]


def test_one_that_falls_for_good_while_it_is_watched_is_told_as_quarantined(
    heard: list[tuple[str, Down]], broken: set[str]
) -> None:
    hand = Hand(
        lambda context: Guard(context, heard, broken),
        spec={"intensity": Intensity(restarts_max=0)},
        kernel_options={"place": PLACES.get},
    )
    watch(hand, heard)
    broken.add("a")
    hand.ask("a", "x")
    settle(hand, heard)
    assert [down.reason for _, down in heard] == [DownReason.QUARANTINED]


def test_an_unknown_actor_is_told_at_once(hand: Hand, heard: list[tuple[str, Down]]) -> None:
    watch(hand, heard, "nobody")
    assert heard == [("w", Down(actor_id="nobody", reason=DownReason.UNKNOWN))]
    assert "nobody" not in hand.kernel.cells


def test_who_ends_a_watch_hears_nothing(hand: Hand, heard: list[tuple[str, Down]]) -> None:
    watch(hand, heard)
    hand.kernel.tell("w", ("unmonitor", "a"))
    hand.kernel.tell("w", ("unmonitor", "b"))  # none: nothing happens
    settle(hand, heard)
    hand.ask("a", "crash")
    settle(hand, heard)
    assert heard == []


def test_a_watch_of_a_turn_that_crashed_never_began(hand: Hand, heard: list[tuple[str, Down]]) -> None:
    hand.kernel.tell("w", ("monitor", "a"))
    hand.ask("w", "crash")
    hand.run()
    assert hand.kernel.statistics().monitors == 0
    settle(hand, heard)  # the first of the two is handled again, alone
    assert hand.kernel.statistics().monitors == 1


def test_a_watch_lasts_over_its_watchers_crash(hand: Hand, heard: list[tuple[str, Down]]) -> None:
    watch(hand, heard)
    hand.ask("w", "crash")
    settle(hand, heard)
    hand.ask("a", "crash")
    settle(hand, heard)
    assert [down.reason for _, down in heard] == [DownReason.CRASHED]


def test_an_actor_that_watches_itself_hears_of_its_own_crash(
    hand: Hand, heard: list[tuple[str, Down]]
) -> None:
    watch(hand, heard, "w")
    hand.ask("w", "crash")
    settle(hand, heard)
    assert [(watcher, down.reason) for watcher, down in heard] == [("w", DownReason.CRASHED)]


def test_a_down_that_a_full_disk_refuses_is_heard_once_it_can_be_kept(
    hand: Hand, heard: list[tuple[str, Down]]
) -> None:
    watch(hand, heard)
    hand.kernel.removed("a")
    hand.run()
    hand.refuse(StorageFull())
    settle(hand, heard)
    assert [down.reason for _, down in heard] == [DownReason.REMOVED]


def test_a_watcher_that_is_removed_watches_nobody(hand: Hand, heard: list[tuple[str, Down]]) -> None:
    watch(hand, heard)
    watch(hand, heard, "b")
    hand.kernel.removed("w")
    assert hand.kernel.statistics().monitors == 0


def test_watches_are_bounded_and_one_beyond_is_told_so() -> None:
    watches = Watches(watches_max=2)
    assert watches.add("a", "w", lambda _: None)
    assert watches.add("b", "w", lambda _: None)
    assert not watches.add("c", "w", lambda _: None)
    assert watches.add("b", "w", lambda _: None)
    watches.remove("a", "w")
    assert watches.add("c", "w", lambda _: None)
    assert (len(watches), len(watches.end_all()), len(watches)) == (2, 2, 0)


def test_a_monitor_beyond_the_bound_ends_at_once(hand: Hand, heard: list[tuple[str, Down]]) -> None:
    hand.kernel.watches = Watches(watches_max=1)
    watch(hand, heard)
    watch(hand, heard, "b")
    assert heard == [("w", Down(actor_id="b", reason=DownReason.LIMIT, epoch=3, seq=9))]


def test_a_kernel_that_stops_lets_those_who_wait_outside_go(hand: Hand) -> None:
    told: list[Down | None] = []
    hand.kernel.monitor("a", object(), told.append)
    hand.kernel.stop()
    assert told == [None]
    hand.kernel.monitor("a", object(), told.append)  # too late
    assert told == [None, None]


def test_a_spawned_actor_is_known_without_a_place(heard: list[tuple[str, Down]], broken: set[str]) -> None:
    hand = Hand(lambda context: Guard(context, heard, broken), kernel_options={"place": PLACES.get})

    async def start(context: ActorContext) -> Guard:
        raise AssertionError

    hand.kernel.spawn("s", ActorSpec(start=start))
    watch(hand, heard, "s")
    hand.kernel.removed("s")
    settle(hand, heard)
    assert heard == [("w", Down(actor_id="s", reason=DownReason.REMOVED))]


def test_those_that_somebody_waits_to_read_start_first() -> None:
    order: list[str] = []

    class Echo:
        def __init__(self, context: ActorContext) -> None:
            order.append(context.actor_id)

        def receive(self, message: Any) -> Any:
            return message

        def close_slot(self) -> None: ...

    hand = Hand(Echo, kernel_options={"starts_max": 1})
    hand.ask("first", "x")  # starts at once
    for n in range(3):
        hand.ask(f"changed{n}", "x")
    hand.kernel.tell("timed", "x", control=True)  # a timer: nobody looks
    hand.ask("read", "x", control=True)
    hand.ask("changed2", "x", control=True)  # waits already, and is looked at now
    assert hand.kernel.statistics().start_queue == 5
    hand.run()
    assert order == ["first", "read", "changed2", "changed0", "changed1", "timed"]
    assert hand.conserved()
