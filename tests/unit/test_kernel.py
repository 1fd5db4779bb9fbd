"""The sans-IO kernel, stepped by hand: lanes, bounds, slots, commits, crashes, timers, deadlines, conservation."""

from typing import Any

import pytest

from sojourn.actors.errors import (
    CallerError,
    DeadlineExceeded,
    IntensityExceeded,
    MailboxFull,
    Quarantined,
    Stopped,
    StorageFull,
)
from sojourn.actors.kernel.actor import ActorContext, JobDone, Kept
from sojourn.actors.kernel.mailbox import MailboxLimits
from sojourn.actors.kernel.restart import Intensity, Restart

from ..support.kernel import Hand


class Ledger:
    """Keeps what it is told in `store` once it is committed, as a session does: its state is what it began with and
    what came since."""

    def __init__(self, context: ActorContext, store: dict[str, list[Any]]) -> None:
        self.context = context
        self.items = list(store.setdefault(context.actor_id, []))
        self.changes: list[Any] = []

    def receive(self, message: Any) -> Any:
        match message:
            case "read":
                return list(self.items)
            case "reject":
                raise CallerError("no")
            case "crash":
                raise RuntimeError("boom")
            case "job":

                async def work() -> str:
                    return "worked"

                self.context.start_job("j", work)
            case ("timer", delay_s, note):
                self.context.set_timer("t", delay_s, note)
                return None
            case ("tell", other, note):
                self.context.tell(other, note)
        self.items.append(message)
        self.changes.append(message)
        return len(self.items)

    def close_slot(self) -> Any:
        changes, self.changes = self.changes, []
        if "unencodable" in changes:
            raise TypeError("cannot encode")
        return changes or None


@pytest.fixture
def store() -> dict[str, list[Any]]:
    return {}


@pytest.fixture
def hand(store: dict[str, list[Any]]) -> Hand:
    return Hand(lambda context: Ledger(context, store))


def commit(hand: Hand, store: dict[str, list[Any]], actor_id: str = "a") -> list[Any]:
    """Commit, and keep the records as a journal would."""
    for cell in hand.kernel.outbox:
        store.setdefault(cell.actor_id, []).extend(cell.record)
    return hand.commit()


def test_an_answer_leaves_only_with_its_commit(hand: Hand, store: dict[str, list[Any]]) -> None:
    waiter = hand.ask("a", "x")
    hand.run()
    assert not waiter.ended
    assert commit(hand, store) == [["x"]]
    assert waiter.result == 1
    assert hand.conserved()


def test_a_parked_actor_takes_no_turn_until_its_commit_and_others_go_on(
    hand: Hand, store: dict[str, list[Any]]
) -> None:
    first = hand.ask("a", "x")
    hand.run()
    later, other = hand.ask("a", "read"), hand.ask("b", "read")
    hand.run()
    assert other.result == []
    assert not later.ended
    commit(hand, store)
    assert first.ended
    assert later.result == ["x"]


def test_the_turns_of_one_slot_make_one_record(hand: Hand, store: dict[str, list[Any]]) -> None:
    hand.ask("a", "read")
    hand.run()
    for n in range(70):
        hand.kernel.tell("a", n)
    hand.run()
    assert [len(record) for record in commit(hand, store)] == [64]
    assert [len(record) for record in commit(hand, store)] == [6]
    assert hand.conserved()


def test_a_read_after_a_change_in_the_same_slot_waits_for_the_commit(
    hand: Hand, store: dict[str, list[Any]]
) -> None:
    hand.ask("a", "x")
    read = hand.ask("a", "read")
    hand.run()
    assert not read.ended
    commit(hand, store)
    assert read.result == ["x"]


def test_an_early_answer_leaves_before_the_commit(hand: Hand) -> None:
    waiter = hand.ask("a", "x", early=True)
    hand.run()
    assert waiter.result == 1
    assert len(hand.kernel.outbox) == 1


def test_an_early_answer_behind_a_whole_slot_leaves_before_its_own_commit(
    hand: Hand, store: dict[str, list[Any]]
) -> None:
    hand.ask("a", "read")
    hand.run()
    first = hand.ask("a", "x", early=True)
    for n in range(70):
        hand.kernel.tell("a", n)
    last = hand.ask("a", "y", early=True)
    hand.run()
    assert first.ended
    assert not last.ended
    commit(hand, store)
    assert last.result == 72
    assert len(hand.kernel.outbox) == 1


def test_a_rejection_is_an_answer_and_the_actor_lives(hand: Hand) -> None:
    rejected, after = hand.ask("a", "reject"), hand.ask("a", "read")
    hand.run()
    assert isinstance(rejected.error, CallerError)
    assert after.result == []
    assert hand.kernel.statistics().crashes == 0


def test_the_control_lane_overtakes(hand: Hand) -> None:
    hand.kernel.tell("a", "x")
    read = hand.ask("a", "read", control=True)
    hand.run()
    hand.commit()
    assert read.result == []


def test_messages_of_a_lane_are_handled_in_order(hand: Hand, store: dict[str, list[Any]]) -> None:
    for n in range(200):
        hand.kernel.tell("a", n)
    hand.run()
    while hand.kernel.outbox:
        commit(hand, store)
    assert store["a"] == list(range(200))


def test_a_full_mailbox_answers_with_retry_after(store: dict[str, list[Any]]) -> None:
    hand = Hand(lambda context: Ledger(context, store), spec={"mailbox": MailboxLimits(messages_max=2)})
    hand.kernel.tell("a", 1)
    hand.kernel.tell("a", 2)
    with pytest.raises(MailboxFull) as full:
        hand.kernel.tell("a", 3)
    assert full.value.retry_after_s > 0
    hand.kernel.tell("a", "read", control=True)  # its room is its own
    assert hand.kernel.statistics().refused == 1
    assert hand.conserved()


def test_an_actor_at_rest_takes_as_many_messages_as_one_that_is_not_in_memory(
    store: dict[str, list[Any]],
) -> None:
    hand = Hand(lambda context: Ledger(context, store), spec={"mailbox": MailboxLimits(messages_max=3)})
    hand.ask("a", "read")
    hand.run()
    for n in (1, 2, 3):
        hand.kernel.tell("a", n)
    with pytest.raises(MailboxFull):
        hand.kernel.tell("a", 4)
    assert (hand.kernel.statistics().queued, hand.kernel.statistics().refused) == (3, 1)
    assert hand.conserved()
    hand.run()
    assert hand.commit() == [[1, 2, 3]]


def test_a_read_overtakes_the_one_message_that_waits(hand: Hand, store: dict[str, list[Any]]) -> None:
    hand.ask("a", "read")
    hand.run()
    hand.kernel.tell("a", 1)
    read = hand.ask("a", "read", control=True)
    hand.run()
    commit(hand, store)
    assert read.result == []
    assert store["a"] == [1]


def test_a_mailbox_is_bounded_in_bytes_and_takes_one_long_message(store: dict[str, list[Any]]) -> None:
    hand = Hand(lambda context: Ledger(context, store), spec={"mailbox": MailboxLimits(bytes_max=10)})
    hand.kernel.tell("a", 1, size_bytes=50)
    with pytest.raises(MailboxFull):
        hand.kernel.tell("a", 2, size_bytes=1)


def test_all_mailboxes_together_are_bounded(store: dict[str, list[Any]]) -> None:
    hand = Hand(lambda context: Ledger(context, store), kernel_options={"inbound_bytes_max": 10})
    hand.kernel.tell("a", 1, size_bytes=6)
    with pytest.raises(MailboxFull, match="inbound"):
        hand.kernel.tell("b", 2, size_bytes=6)
    hand.run()
    hand.kernel.tell("b", 2, size_bytes=6)
    assert hand.kernel.statistics().inbound_bytes == 6


def test_a_crash_discards_the_slot_and_replays_its_messages_singly(
    hand: Hand, store: dict[str, list[Any]]
) -> None:
    before, culprit, after = hand.ask("a", "x"), hand.ask("a", "crash"), hand.ask("a", "y")
    hand.run()
    assert not hand.kernel.outbox
    assert not before.ended
    for _ in range(4):
        hand.pass_time(1.0)
        commit(hand, store)
    assert (before.result, after.result) == (1, 2)
    assert isinstance(culprit.error, Quarantined)
    assert isinstance(culprit.error.__cause__, RuntimeError)
    assert store["a"] == ["x", "y"]
    assert hand.kernel.statistics().quarantined == 1
    assert hand.conserved()


def test_any_number_of_poison_messages_is_set_aside_and_the_actor_goes_on(
    hand: Hand, store: dict[str, list[Any]]
) -> None:
    poison = [hand.ask("a", "crash") for _ in range(20)]
    good = hand.ask("a", "x")
    hand.pass_time(20.0)
    commit(hand, store)
    assert all(isinstance(waiter.error, Quarantined) for waiter in poison)
    assert good.result == 1
    assert hand.conserved()


def test_a_slot_ends_after_two_milliseconds_and_the_rest_keeps_its_order(store: dict[str, list[Any]]) -> None:
    hands: list[Hand] = []

    class Slow(Ledger):
        def receive(self, message: Any) -> Any:
            hands[0].now += 0.001
            return super().receive(message)

    hand = Hand(lambda context: Slow(context, store))
    hands.append(hand)
    for n in range(20):
        hand.kernel.tell("a", n, size_bytes=10)
    hand.run()
    lengths = []
    while hand.kernel.outbox:
        lengths += [len(record) for record in commit(hand, store)]
    assert lengths == [8, 8, 4]
    assert store["a"] == list(range(20))
    assert hand.kernel.statistics().inbound_bytes == 0
    assert hand.conserved()


def test_what_stands_behind_a_crash_keeps_its_order(hand: Hand, store: dict[str, list[Any]]) -> None:
    for n in range(30):
        hand.kernel.tell("a", "crash" if n == 19 else n, size_bytes=10)
    hand.pass_time(5.0)
    while hand.kernel.outbox:
        commit(hand, store)
        hand.pass_time(1.0)
    assert store["a"] == [n for n in range(30) if n != 19]
    assert hand.kernel.statistics().inbound_bytes == 0
    assert hand.conserved()


def test_a_record_that_cannot_be_encoded_is_a_crash_and_nothing_of_it_happens(
    hand: Hand, store: dict[str, list[Any]]
) -> None:
    culprit = hand.ask("a", "unencodable")
    hand.pass_time(5.0)
    assert isinstance(culprit.error, Quarantined)
    read = hand.ask("a", "read")
    hand.pass_time(1.0)
    assert read.result == []


def test_an_actor_that_crashes_too_often_is_set_aside_until_it_is_released(
    store: dict[str, list[Any]],
) -> None:
    spec = {"intensity": Intensity(restarts_max=2, period_s=60.0)}
    broken = ["a"]

    def start(context: ActorContext) -> Ledger:
        if context.actor_id in broken:
            raise RuntimeError("its history cannot be folded")
        return Ledger(context, store)

    hand = Hand(start, spec=spec)
    waiting, other = hand.ask("a", "x"), hand.ask("b", "x")
    hand.pass_time(10.0)
    commit(hand, store)
    assert isinstance(waiting.error, IntensityExceeded)
    assert other.result == 1
    broken.clear()
    with pytest.raises(IntensityExceeded):
        hand.kernel.tell("a", "x")
    hand.kernel.release("a")
    again = hand.ask("a", "x")
    hand.run()
    commit(hand, store)
    assert again.result == 1
    assert hand.conserved()


class Keeping:
    """A keeper that keeps messages as they are; of a batch (a list) the first crash in it."""

    def __init__(self, **attempts: int) -> None:
        self.before = attempts

    def attempts(self, actor_id: str, message: Any, crash: Exception) -> int:
        return self.before.get(str(message), 0)

    def poisonous(self, actor_id: str, message: Any, crash: Exception) -> Kept:
        if isinstance(message, list):
            message.remove("crash")
            return Kept(error=Quarantined(), record=["mark"], again=True)
        return Kept(error=Quarantined("kept"), record=["mark", message])

    def crash_loop(self, actor_id: str, crash: Exception) -> Kept:
        return Kept(error=IntensityExceeded("kept"), record=["loop", actor_id])


def test_a_poison_message_is_answered_once_what_is_kept_of_it_is_committed(
    store: dict[str, list[Any]],
) -> None:
    keeper = Keeping()
    hand = Hand(lambda context: Ledger(context, store), spec={"keeper": keeper})
    culprit = hand.ask("a", "crash")
    hand.pass_time(5.0)
    behind = hand.ask("a", "x")
    hand.pass_time(5.0)
    assert not culprit.ended
    assert not behind.ended
    assert hand.conserved()
    assert hand.commit() == [["mark", "crash"]]
    assert str(culprit.error) == "kept"
    assert isinstance(culprit.error.__cause__, RuntimeError)  # type: ignore[union-attr]
    hand.pass_time(1.0)
    assert commit(hand, store) == [["x"]]
    assert behind.result == 1
    assert (hand.kernel.statistics().quarantined, hand.kernel.statistics().replied) == (1, 1)
    assert hand.conserved()


def test_a_poison_message_that_cannot_be_kept_is_refused_as_its_store_says(
    store: dict[str, list[Any]],
) -> None:
    keeper = Keeping()
    hand = Hand(lambda context: Ledger(context, store), spec={"keeper": keeper})
    culprit, behind = hand.ask("a", "crash"), hand.ask("a", "x")
    hand.pass_time(5.0)
    hand.refuse(StorageFull())
    assert isinstance(culprit.error, StorageFull)
    hand.pass_time(5.0)
    commit(hand, store)
    assert behind.result == 1
    assert hand.kernel.statistics().quarantined == 0
    assert hand.conserved()


def test_a_message_that_took_an_earlier_process_along_is_set_aside_at_its_first_crash(
    store: dict[str, list[Any]],
) -> None:
    keeper = Keeping(crash=1)
    hand = Hand(lambda context: Ledger(context, store), spec={"keeper": keeper})
    hand.ask("a", "crash")
    hand.run()
    assert hand.commit() == [["mark", "crash"]]
    assert hand.kernel.statistics().crashes == 1


def test_a_message_of_which_a_part_is_set_aside_is_handled_again_without_it(
    store: dict[str, list[Any]],
) -> None:
    keeper = Keeping()

    class Lines(Ledger):
        def receive(self, message: Any) -> Any:
            return [super(Lines, self).receive(line) for line in message]

    hand = Hand(lambda context: Lines(context, store), spec={"keeper": keeper})
    batch = hand.ask("a", ["x", "crash", "y", "crash", "z"], size_bytes=10)
    for _ in range(2):
        hand.pass_time(5.0)
        assert hand.commit() == [["mark"]]
        assert hand.conserved()
    hand.pass_time(5.0)
    assert commit(hand, store) == [["x", "y", "z"]]
    assert batch.result == [1, 2, 3]
    assert hand.kernel.statistics().inbound_bytes == 0
    assert hand.conserved()


def test_a_crash_loop_is_kept_and_tried_again_while_it_cannot_be(store: dict[str, list[Any]]) -> None:
    keeper = Keeping()
    broken = True

    def start(context: ActorContext) -> Ledger:
        if broken:
            raise RuntimeError("its history cannot be folded")
        return Ledger(context, store)

    spec = {"intensity": Intensity(restarts_max=2, period_s=3_600.0, backoff_max_s=1.0), "keeper": keeper}
    hand = Hand(start, spec=spec)
    waiting = hand.ask("a", "x", deadline_s=7_200.0)
    hand.pass_time(10.0)
    hand.refuse(StorageFull())
    assert not waiting.ended
    hand.pass_time(2.0)
    assert hand.commit() == [["loop", "a"]]
    assert str(waiting.error) == "kept"
    assert hand.kernel.statistics().actors_quarantined == 1
    broken = False
    hand.kernel.release("a")
    again = hand.ask("a", "x")
    hand.run()
    commit(hand, store)
    assert again.result == 1
    assert hand.conserved()


def test_an_actor_that_is_held_takes_nothing_until_it_is_released(hand: Hand) -> None:
    hand.kernel.hold("a")
    with pytest.raises(IntensityExceeded, match="until it is released"):
        hand.ask("a", "x")
    hand.kernel.release("a")
    hand.ask("a", "x")
    hand.run()
    hand.kernel.hold("a")  # it is in memory, and well
    assert hand.commit() == [["x"]]


def test_a_temporary_actor_is_not_started_again(store: dict[str, list[Any]]) -> None:
    hand = Hand(lambda context: Ledger(context, store), spec={"restart": Restart.TEMPORARY})
    waiter = hand.ask("a", "crash")
    hand.pass_time(60.0)
    assert isinstance(waiter.error, IntensityExceeded)


def test_a_refused_commit_is_no_crash_and_nothing_of_it_happened(hand: Hand) -> None:
    asked = hand.ask("a", "x")
    hand.kernel.tell("a", "y")
    hand.run()
    hand.refuse(StorageFull())
    read = hand.ask("a", "read")
    hand.run()
    assert isinstance(asked.error, StorageFull)
    assert read.result == []
    assert hand.kernel.statistics().crashes == 0
    assert hand.kernel.dead_letters.counts == {"storage_full": 1}
    assert hand.conserved()


def test_a_read_that_shared_a_refused_slot_is_answered_all_the_same(hand: Hand) -> None:
    """A full disk stops no reader; and what changes something is refused once more, and then no more tried."""
    changes = [hand.ask("a", "x"), hand.ask("a", "y", control=True)]
    read = hand.ask("a", "read", control=True)
    hand.run()
    hand.refuse(StorageFull())
    assert isinstance(changes[0].error, StorageFull)
    hand.refuse(StorageFull())
    assert isinstance(changes[1].error, StorageFull)
    assert read.result == []
    assert hand.conserved()


def test_a_store_error_at_start_is_answered_and_the_next_message_tries_again(
    store: dict[str, list[Any]],
) -> None:
    failures = [StorageFull()]

    def start(context: ActorContext) -> Ledger:
        if failures:
            raise failures.pop()
        return Ledger(context, store)

    hand = Hand(start)
    first = hand.ask("a", "read")
    hand.run()
    second = hand.ask("a", "read")
    hand.run()
    assert isinstance(first.error, StorageFull)
    assert second.result == []
    assert hand.conserved()


def test_an_ask_past_its_deadline_is_told_so_and_dropped_unhandled(
    hand: Hand, store: dict[str, list[Any]]
) -> None:
    hand.ask("a", "x")
    hand.run()  # the actor is parked on its commit
    late = hand.ask("a", "y", deadline_s=1.0)
    hand.pass_time(2.0)
    assert isinstance(late.error, DeadlineExceeded)
    commit(hand, store)
    commit(hand, store)
    assert store["a"] == ["x"]
    assert hand.kernel.statistics().expired == 1
    assert hand.conserved()


def test_an_ask_whose_commit_outlasts_its_deadline_takes_effect_all_the_same(
    hand: Hand, store: dict[str, list[Any]]
) -> None:
    late = hand.ask("a", "x", deadline_s=1.0)
    hand.run()
    hand.pass_time(2.0)
    assert isinstance(late.error, DeadlineExceeded)
    commit(hand, store)
    assert store["a"] == ["x"]
    assert hand.conserved()


def test_answered_asks_leave_nothing_in_the_wheel(hand: Hand) -> None:
    for _ in range(100):
        hand.ask("a", "read")
        hand.run()
    assert hand.kernel.statistics().deadlines == 0


def test_a_deadline_rings_although_all_other_asks_of_its_moment_were_answered(hand: Hand) -> None:
    answered = hand.ask("a", "read", deadline_s=1.0)
    hand.run()
    late = hand.ask("a", "x", deadline_s=1.0)
    hand.pass_time(2.0)
    assert answered.result == []
    assert isinstance(late.error, DeadlineExceeded)


def test_a_timer_rings_once_and_not_early(hand: Hand, store: dict[str, list[Any]]) -> None:
    hand.kernel.tell("a", ("timer", 5.0, "rang"))
    hand.pass_time(4.9)
    assert not hand.kernel.outbox
    hand.pass_time(0.2)
    assert commit(hand, store) == [["rang"]]
    hand.pass_time(60.0)
    assert not hand.kernel.outbox


def test_a_job_starts_only_once_its_slot_is_committed_and_its_end_is_a_turn(
    hand: Hand, store: dict[str, list[Any]]
) -> None:
    hand.kernel.tell("a", "job")
    hand.run()
    assert not hand.kernel.jobs
    commit(hand, store)
    (job,) = hand.kernel.jobs
    hand.kernel.job_ended(job, "worked", None)
    hand.run()
    assert commit(hand, store) == [[JobDone(key="j", value="worked")]]


def test_what_a_crashing_slot_started_never_happens(hand: Hand) -> None:
    hand.kernel.tell("a", ("tell", "b", "x"))
    hand.kernel.tell("a", "crash")
    hand.run()
    assert "b" not in hand.kernel.cells


def test_an_idle_actor_is_forgotten_and_comes_back_with_its_next_message(
    hand: Hand, store: dict[str, list[Any]]
) -> None:
    hand.ask("a", "x")
    hand.run()
    assert not hand.kernel.passivate("a")  # parked on its commit
    commit(hand, store)
    assert hand.kernel.passivate("a")
    assert hand.kernel.statistics().actors == 0
    read = hand.ask("a", "read")
    hand.run()
    assert read.result == ["x"]


def test_no_more_actors_start_at_once_than_the_limit(store: dict[str, list[Any]]) -> None:
    hand = Hand(lambda context: Ledger(context, store), kernel_options={"starts_max": 2})
    waiters = [hand.ask(f"a{n}", "read") for n in range(5)]
    assert len(hand.kernel.starts) == 2
    hand.run()
    assert all(waiter.result == [] for waiter in waiters)


def test_a_stopped_kernel_tells_everyone_who_waits(hand: Hand) -> None:
    parked, queued = hand.ask("a", "x"), None
    hand.run()
    queued = hand.ask("a", "y")
    hand.kernel.stop()
    assert isinstance(parked.error, Stopped)
    assert isinstance(queued.error, Stopped)
    accepted = hand.kernel.statistics().accepted
    for actor_id in ("a", "b"):
        with pytest.raises(Stopped):  # or it would wait for ever
            hand.ask(actor_id, "z")
    assert hand.kernel.statistics().accepted == accepted


def test_a_stopped_kernel_takes_no_message_wherever_the_actor_is(hand: Hand) -> None:
    hand.ask("at rest", "read")
    hand.ask("at work", "read")
    hand.run()
    hand.kernel.tell("at work", 1)
    hand.kernel.tell("at work", 2)
    hand.kernel.stop()
    for actor_id in ("at rest", "at work", "not in memory"):
        with pytest.raises(Stopped):
            hand.kernel.tell(actor_id, 3)
