"""The ledger of stalls by hand, on looks at given moments; and a real thread that looks at a real kernel."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from attrs import define
from structlog.testing import capture_logs

from sojourn.actors.kernel.envelope import Envelope
from sojourn.runtime.stalls import KEPT_MAX, RunningTurn, StallLedger, StallWatch, message_type

from ..support.kernel import Hand
from ..support.wait import wait_until

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def turn(n: object = 1, *, actor_id: str = "a", slot_began_s: float = 0.0) -> RunningTurn:
    return RunningTurn(actor_id, Envelope(n), slot_began_s, ("actor.py:7 receive",))


@pytest.fixture
def ledger() -> StallLedger:
    return StallLedger(0.05, lambda: NOW)


def test_a_turn_that_is_found_again_and_again_is_one_stall_that_grows(ledger: StallLedger) -> None:
    slow = turn(slot_began_s=100.0)
    for now_s in (100.0, 100.025, 100.05, 100.075, 100.3):
        ledger.look(now_s, slow)
    ledger.look(100.325, None)
    statistics = ledger.statistics()
    (stall,) = statistics.recent
    assert (statistics.total, statistics.longest_s) == (1, stall.duration_s)
    assert (stall.actor_id, stall.message, stall.noticed_at) == ("a", "int", NOW)
    assert stall.stack == ("actor.py:7 receive",)
    assert stall.duration_s == pytest.approx(0.3)


def test_turns_that_follow_each_other_are_not_taken_for_one(ledger: StallLedger) -> None:
    ledger.look(99.99, None)
    for n in range(20):
        ledger.look(100.0 + n * 0.025, turn(n, slot_began_s=99.0))
    assert ledger.statistics().total == 0


def test_a_turn_in_the_middle_of_its_slot_is_not_charged_with_those_before(ledger: StallLedger) -> None:
    ledger.look(99.99, None)
    ledger.look(100.0, turn("before", slot_began_s=99.9))
    after = turn("after", slot_began_s=99.9)
    ledger.look(100.04, after)
    ledger.look(100.045, after)
    assert ledger.statistics().total == 0
    ledger.look(100.055, after)
    assert [stall.message for stall in ledger.statistics().recent] == ["str"]


def test_one_that_held_the_interpreter_is_found_at_the_first_look_after(ledger: StallLedger) -> None:
    ledger.look(100.0, None)
    ledger.look(102.0, turn(slot_began_s=100.01))
    (stall,) = ledger.statistics().recent
    assert stall.duration_s == pytest.approx(1.99)


def test_the_last_hundred_are_kept_and_all_are_counted(ledger: StallLedger) -> None:
    for n in range(1, KEPT_MAX + 21):
        ledger.look(float(n), turn(n, actor_id=f"a{n}", slot_began_s=n - 0.5))
    statistics = ledger.statistics()
    assert (statistics.total, len(statistics.recent)) == (KEPT_MAX + 20, KEPT_MAX)
    assert statistics.recent[-1].actor_id == f"a{KEPT_MAX + 20}"


def test_an_actor_is_logged_once_a_minute_with_what_to_do(ledger: StallLedger) -> None:
    with capture_logs() as logs:
        for now_s in (10.0, 30.0, 69.0, 71.0):
            ledger.look(now_s, turn(slot_began_s=now_s - 1))
        ledger.look(72.0, turn(actor_id="b", slot_began_s=71.5))
    assert [(line["session"], line["duration_s"]) for line in logs] == [("a", 1.0), ("a", 1.0), ("b", 0.5)]
    assert all(line["event"] == "turn.stalled" and line["remedy"] for line in logs)
    assert ledger.statistics().total == 5


def test_a_command_goes_by_its_type_and_another_message_by_its_class() -> None:
    @define
    class Command:
        type: str

    assert message_type(Command("log.append")) == "log.append"
    assert message_type(Command) == "type"
    assert message_type(3) == "int"


class Slow:
    """Each turn calls what it is told."""

    def __init__(self, _context: Any) -> None: ...

    def receive(self, message: Callable[[], None]) -> None:
        message()

    def close_slot(self) -> None: ...


def test_a_turn_that_does_not_end_is_known_with_its_stack_while_it_runs() -> None:
    """Held to the scheduler's own names: where those change, nothing would be found."""
    hand = Hand(Slow)
    # The kernel's clock must be the machine's here.
    hand.kernel.clock = time.monotonic
    watch = StallWatch(hand.kernel, 0.01)
    found: list[Any] = []

    def hang_on() -> None:
        wait_until(lambda: watch.statistics().total)
        found.extend(watch.statistics().recent)

    for actor_id in ("quick", "busy"):
        hand.kernel.tell(actor_id, lambda: None)
    hand.run()  # both are loaded
    with watch.watching():
        hand.kernel.tell("quick", lambda: None)
        hand.kernel.tell("busy", hang_on)
        hand.kernel.step(time.monotonic())
    (stall, *_) = found
    assert (stall.actor_id, stall.message) == ("busy", "function")
    assert any("hang_on" in line for line in stall.stack)
    assert "Slow.receive" in stall.stack[0]


def test_with_no_threshold_no_thread_looks() -> None:
    hand = Hand(Slow)
    watch = StallWatch(hand.kernel, 0.0)
    hand.kernel.tell("busy", lambda: None)
    with watch.watching():
        hand.run()
    assert watch.statistics().total == 0
