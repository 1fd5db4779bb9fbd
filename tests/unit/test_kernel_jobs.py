"""Jobs of actors, by hand: begun by a committed turn alone, ended once, never run twice."""

from typing import Any

import pytest

from sojourn.actors.errors import (
    JobCancelled,
    JobUnknown,
    LimitReached,
    Quarantined,
    StorageFull,
    StoreUnavailable,
)
from sojourn.actors.kernel.actor import ActorContext, Job, JobDone
from sojourn.actors.kernel.lifecycle import JOBS_MAX
from sojourn.actors.kernel.restart import Intensity

from ..support.kernel import Hand


class Clerk:
    """Starts jobs by name and keeps in `store` which have begun and what each came to, as its record is committed."""

    def __init__(self, context: ActorContext, store: dict[str, str]) -> None:
        self.context = context
        self.store = store
        self.changes: dict[str, str] = {}
        self.crash_on_end = False
        context.jobs_begun([key for key, end in store.items() if end == "begun"])

    async def work(self) -> None: ...

    def receive(self, message: Any) -> Any:
        match message:
            case ("start", key):
                self.context.start_job(key, self.work)
                self.changes[key] = "begun"
            case ("twice", key):
                self.context.start_job(key, self.work)
                self.context.start_job(key, self.work)
            case ("cancel", key):
                self.context.cancel_job(key)
            case "crash":
                raise RuntimeError("boom")
            case JobDone():
                self.changes[message.key] = (
                    type(message.error).__name__ if message.error else f"done {message.value}"
                )
        return dict(self.store)

    def close_slot(self) -> Any:
        changes, self.changes = self.changes, {}
        return changes or None


@pytest.fixture
def store() -> dict[str, str]:
    return {}


@pytest.fixture
def hand(store: dict[str, str]) -> Hand:
    return Hand(lambda context: Clerk(context, store))


def commit(hand: Hand, store: dict[str, str]) -> None:
    """Commit what lies there, as a journal would, until nothing does."""
    hand.run()
    while hand.kernel.outbox:
        for cell in hand.kernel.outbox:
            store.update(cell.record)
        hand.commit()


def settle(hand: Hand, store: dict[str, str]) -> None:
    """Crashes and pauses included."""
    for _ in range(10):
        hand.pass_time(1.0)
        commit(hand, store)
    assert hand.conserved()


def begun(hand: Hand, store: dict[str, str], key: str = "j") -> Job:
    """A job that the driver has taken and runs."""
    hand.kernel.tell("a", ("start", key))
    commit(hand, store)
    (job,) = hand.kernel.jobs
    hand.kernel.jobs = []
    return job


def test_a_job_whose_turn_is_not_committed_never_was(hand: Hand, store: dict[str, str]) -> None:
    refused = hand.ask("a", ("start", "j"))
    hand.run()
    hand.refuse(StorageFull())
    assert isinstance(refused.error, StorageFull)
    hand.kernel.tell("a", ("start", "j"))
    hand.kernel.tell("a", "crash")
    hand.run()
    assert hand.kernel.jobs == []
    hand.pass_time(5.0)  # the first of them is handled again, alone
    commit(hand, store)
    assert [job.key for job in hand.kernel.jobs] == ["j"]
    assert store == {"j": "begun"}
    assert hand.conserved()


def test_a_cancelled_job_is_stopped_and_ends_once(hand: Hand, store: dict[str, str]) -> None:
    job = begun(hand, store)
    stopped = []
    job.cancel = lambda: stopped.append(job.key)
    hand.kernel.tell("a", ("cancel", "j"))
    commit(hand, store)
    assert stopped == ["j"]
    assert store == {"j": "JobCancelled"}
    hand.kernel.job_ended(job, "after all", None)
    commit(hand, store)
    assert store == {"j": "JobCancelled"}
    assert hand.kernel.statistics().jobs == 0
    assert hand.conserved()


def test_cancelling_what_has_ended_or_never_began_does_nothing(hand: Hand, store: dict[str, str]) -> None:
    job = begun(hand, store)
    hand.kernel.job_ended(job, 1, None)
    hand.kernel.tell("a", ("cancel", "j"))
    hand.kernel.tell("a", ("cancel", "other"))
    commit(hand, store)
    assert store == {"j": "done 1"}


def test_a_job_under_way_at_a_crash_is_stopped_and_its_end_is_told_as_unknown(
    hand: Hand, store: dict[str, str]
) -> None:
    job = begun(hand, store)
    stopped = []
    job.cancel = lambda: stopped.append(job.key)
    hand.ask("a", "crash")
    hand.run()
    assert stopped == ["j"]
    hand.kernel.job_ended(job, "after all", None)  # it could not be stopped in time
    read = hand.ask("a", "read")
    settle(hand, store)
    assert read.result == {"j": "JobUnknown"}
    assert hand.kernel.jobs == []


def test_a_job_under_way_when_its_actors_state_is_read_anew_is_unknown_too(
    hand: Hand, store: dict[str, str]
) -> None:
    begun(hand, store)
    hand.ask("a", ("start", "other"))
    hand.run()
    hand.refuse(StoreUnavailable())
    commit(hand, store)
    hand.ask("a", "read")
    commit(hand, store)
    assert store == {"j": "JobUnknown"}
    assert hand.kernel.jobs == []


def test_a_job_that_was_under_way_when_the_process_ended_is_declared_unknown_at_recovery(
    store: dict[str, str],
) -> None:
    begun(Hand(lambda context: Clerk(context, store)), store)
    after = Hand(lambda context: Clerk(context, store))
    after.ask("a", "read")
    commit(after, store)
    assert store == {"j": "JobUnknown"}
    assert after.kernel.jobs == []
    after.ask("a", "crash")
    after.pass_time(5.0)
    commit(after, store)
    assert store == {"j": "JobUnknown"}
    assert after.conserved()


def test_an_end_that_waits_while_its_actor_crashes_is_heard_as_it_was(
    hand: Hand, store: dict[str, str]
) -> None:
    """Its state says that the job has begun, and its mailbox how it ended."""
    job = begun(hand, store)
    hand.ask("a", "crash")
    hand.kernel.job_ended(job, 7, None)
    hand.pass_time(5.0)
    commit(hand, store)
    assert store == {"j": "done 7"}
    assert hand.conserved()


def test_an_end_whose_commit_is_refused_is_handed_over_again(hand: Hand, store: dict[str, str]) -> None:
    job = begun(hand, store)
    hand.kernel.job_ended(job, 7, None)
    hand.run()
    for _ in range(3):
        hand.refuse(StorageFull())
        assert hand.kernel.outbox == []
        hand.pass_time(1.1)
    commit(hand, store)
    assert store == {"j": "done 7"}
    assert hand.kernel.dead_letters.total == 0
    assert hand.conserved()


def test_an_end_is_heard_however_full_the_mailbox_is(hand: Hand, store: dict[str, str]) -> None:
    job = begun(hand, store)
    hand.ask("a", ("start", "k"))
    hand.run()  # parked on its commit
    for _ in range(64):
        hand.kernel.tell("a", "read", control=True)
    hand.kernel.job_ended(job, 7, None)
    commit(hand, store)
    assert store["j"] == "done 7"


def test_an_actor_has_so_many_jobs_at_once(hand: Hand, store: dict[str, str]) -> None:
    for n in range(JOBS_MAX):
        hand.kernel.tell("a", ("start", f"j{n}"))
    commit(hand, store)
    more = hand.ask("a", ("start", "more"))
    hand.run()
    assert isinstance(more.error, LimitReached)
    assert len(hand.kernel.jobs) == hand.kernel.statistics().jobs == JOBS_MAX


def test_an_actor_has_one_job_of_a_key(hand: Hand, store: dict[str, str]) -> None:
    twice = hand.ask("a", ("twice", "j"))
    settle(hand, store)
    assert isinstance(twice.error, Quarantined)
    assert isinstance(twice.error.__cause__, ValueError)
    assert hand.kernel.jobs == []


def test_an_actor_with_a_job_under_way_stays_in_memory(hand: Hand, store: dict[str, str]) -> None:
    job = begun(hand, store)
    assert not hand.kernel.passivate("a")
    hand.kernel.job_ended(job, 7, None)
    commit(hand, store)
    assert hand.kernel.passivate("a")


def test_one_that_is_set_aside_hears_of_its_lost_job_when_it_is_released(store: dict[str, str]) -> None:
    broken: list[bool] = []

    def start(context: ActorContext) -> Clerk:
        if broken:
            raise RuntimeError("its history cannot be folded")
        return Clerk(context, store)

    hand = Hand(start, spec={"intensity": Intensity(restarts_max=1)})
    begun(hand, store)
    broken.append(True)
    hand.ask("a", "crash")
    hand.pass_time(5.0)
    assert hand.kernel.statistics().actors_quarantined == 1
    broken.clear()
    hand.kernel.release("a")
    hand.ask("a", "read")
    commit(hand, store)
    assert store == {"j": "JobUnknown"}
    assert hand.conserved()


def test_the_errors_say_what_is_to_be_done() -> None:
    assert "not run again by itself" in " ".join(str(JobUnknown()).split())
    assert "cancelled" in str(JobCancelled())
