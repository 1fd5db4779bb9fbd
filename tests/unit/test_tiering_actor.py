"""The tiering supervisor on a kernel that is stepped by hand: when it seals, moves, looks and tries again."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import structlog
from attrs import define, field

from sojourn.actors.errors import IllegalInStatus, NoSuchSession, NotOpen, SojournError, StorageFull
from sojourn.actors.kernel.actor import ActorContext, Job
from sojourn.actors.kernel.scheduler import Kernel
from sojourn.actors.tiering.actor import TIERING, Ended, Look, Mover, Sealed, TieringActor, Waiting
from sojourn.actors.tiering.core import TieringLimits, Work

from ..support.kernel import Hand

SEAL_AFTER_S = 30.0


class NoMover:
    """Jobs are not run here: their ends are told by the test."""

    def __init__(self) -> None:
        self.looks: list[tuple[frozenset[str], Mapping[Work, int], bool]] = []

    async def hand_off(self, session_id: str) -> None:
        raise AssertionError

    async def archive(self, session_id: str) -> None:
        raise AssertionError

    async def look(self, known: frozenset[str], rooms: Mapping[Work, int], sweep: bool) -> Sequence[Waiting]:
        self.looks.append((known, rooms, sweep))
        return []


@define(eq=False)
class Stage:
    """A kernel with the actor, and its jobs by key."""

    limits: TieringLimits = field(factory=TieringLimits)
    hand: Hand = field(init=False)
    mover: NoMover = field(factory=NoMover)
    actor: TieringActor | None = None
    jobs: dict[str, Job] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.hand = Hand(self._start)

    def _start(self, context: ActorContext) -> TieringActor:
        mover: Mover = self.mover
        self.actor = TieringActor(
            context,
            mover,
            clock=lambda: self.hand.now,
            limits=self.limits,
            seal_after_s=SEAL_AFTER_S,
            look_every_s=300.0,
            random_=lambda: 0.5,
        )
        return self.actor

    @property
    def kernel(self) -> Kernel:
        return self.hand.kernel

    def tell(self, message: Any) -> None:
        self.kernel.tell(TIERING, message)
        self.take()

    def pass_time(self, seconds: float) -> None:
        self.hand.pass_time(seconds)
        self.take()

    def end(self, key: str, value: Any = None, error: Exception | None = None) -> None:
        self.kernel.job_ended(self.jobs.pop(key), value, error)
        self.take()

    def take(self) -> None:
        self.hand.run()
        jobs, self.kernel.jobs = self.kernel.jobs, []
        for job in jobs:
            assert job.key not in self.jobs
            self.jobs[job.key] = job

    def stats(self, read: Callable[[Any], Any]) -> Any:
        assert self.actor is not None
        return read(self.actor.statistics())


def test_an_ended_session_is_moved_once_late_lines_had_their_time() -> None:
    stage = Stage()
    stage.tell(Ended("a"))
    stage.pass_time(29.5)
    assert stage.jobs.keys() == set()
    stage.pass_time(1)
    assert stage.jobs.keys() == {"hand_off:a"}
    stage.end("hand_off:a")
    assert stage.stats(lambda s: (s.handed_over, s.waiting, s.running)) == (1, 0, 0)


@pytest.mark.parametrize("news", [Sealed("a"), Ended("a", clean=True)], ids=["sealed", "clean"])
def test_a_session_to_which_nothing_more_will_come_is_moved_at_once(news: Any) -> None:
    stage = Stage()
    stage.tell(Ended("a"))
    stage.tell(news)
    assert stage.jobs.keys() == {"hand_off:a"}


def test_no_more_than_allowed_run_at_once_and_the_next_follows_each_end() -> None:
    stage = Stage(TieringLimits(at_once_max=2))
    for session_id in "abc":
        stage.tell(Sealed(session_id))
    assert stage.jobs.keys() == {"hand_off:a", "hand_off:b"}
    assert stage.stats(lambda s: (s.waiting, s.running)) == (1, 2)
    stage.end("hand_off:b")
    assert stage.jobs.keys() == {"hand_off:a", "hand_off:c"}


def test_a_failure_is_said_once_with_its_remedy_and_tried_again_after_a_pause() -> None:
    stage = Stage()
    with structlog.testing.capture_logs() as logs:
        for session_id in "ab":
            stage.tell(Sealed(session_id))
        stage.end("hand_off:a", error=StorageFull())
        stage.end("hand_off:b", error=StorageFull())
    (said,) = logs
    assert (said["event"], said["failure"], said["session"]) == ("tiering.failed", "storage_full", "a")
    assert "make room" in said["remedy"]
    assert stage.stats(lambda s: (dict(s.failing), s.failures)) == ({"storage_full": 2}, 2)
    stage.pass_time(0.9)
    assert stage.jobs == {}
    stage.pass_time(0.2)
    assert stage.jobs.keys() == {"hand_off:a", "hand_off:b"}
    with structlog.testing.capture_logs() as logs:
        stage.end("hand_off:a")
        stage.end("hand_off:b")
    assert [said["event"] for said in logs] == ["tiering.goes_on_again"]
    assert stage.stats(lambda s: (dict(s.failing), s.handed_over)) == ({}, 2)


def test_a_move_that_the_end_of_the_runtime_came_before_is_no_error_and_stays_to_be_done() -> None:
    stage = Stage()
    stage.tell(Sealed("a"))
    with structlog.testing.capture_logs() as logs:
        stage.end("hand_off:a", error=NotOpen())
    assert [(said["log_level"], said["failure"]) for said in logs] == [("info", "not_open")]
    stage.pass_time(2)
    assert stage.jobs.keys() == {"hand_off:a"}


def test_a_mistake_of_ours_is_said_with_its_traceback() -> None:
    stage = Stage()
    stage.tell(Sealed("a"))
    mistake = ZeroDivisionError("oops")
    with structlog.testing.capture_logs() as logs:
        stage.end("hand_off:a", error=mistake)
    assert (logs[0]["failure"], logs[0]["exc_info"]) == ("ZeroDivisionError", mistake)


@pytest.mark.parametrize(
    "error", [NoSuchSession("a"), IllegalInStatus("session.seal", "running", ())], ids=["gone", "not ended"]
)
def test_what_is_not_there_to_move_is_let_go(error: SojournError) -> None:
    stage = Stage()
    stage.tell(Sealed("a"))
    stage.end("hand_off:a", error=error)
    stage.pass_time(100)
    assert stage.jobs == {}
    assert stage.stats(lambda s: (s.waiting, s.handed_over, s.failures)) == (0, 0, 0)


def test_it_looks_at_the_start_and_every_few_minutes_and_takes_what_is_found() -> None:
    stage = Stage()
    stage.tell(Look(sweep=True))
    assert stage.jobs.keys() == {"look"}
    stage.end("look", [Waiting("a", Work.HAND_OFF, 10.0), Waiting("b", Work.ARCHIVE, 0.0)])
    assert stage.jobs.keys() == {"archive:b"}
    stage.pass_time(11)
    assert stage.jobs.keys() == {"archive:b", "hand_off:a"}
    stage.end("archive:b")
    assert stage.stats(lambda s: s.archived) == 1
    stage.pass_time(300)
    assert "look" in stage.jobs


def test_a_look_is_not_begun_while_one_is_under_way() -> None:
    stage = Stage()
    stage.tell(Look(sweep=True))
    stage.tell(Look())
    stage.pass_time(1_000)
    assert stage.jobs.keys() == {"look"}
    stage.end("look", [])
    stage.pass_time(301)
    assert stage.jobs.keys() == {"look"}


def test_a_look_that_fails_is_said_once_and_the_next_one_comes() -> None:
    stage = Stage()
    with structlog.testing.capture_logs() as logs:
        stage.tell(Look())
        stage.end("look", error=StorageFull())
        stage.pass_time(301)
        stage.end("look", error=StorageFull())
    assert [said["event"] for said in logs] == ["tiering.look_failed"]
    stage.pass_time(301)
    assert stage.jobs.keys() == {"look"}


async def look_now(stage: Stage) -> None:
    await stage.jobs["look"].run()


@pytest.mark.anyio
async def test_a_look_is_told_what_is_known_and_how_much_fits() -> None:
    stage = Stage(TieringLimits(pending_max=5))
    stage.tell(Ended("a"))
    stage.tell(Look(sweep=True))
    await look_now(stage)
    assert stage.mover.looks == [(frozenset({"a"}), {Work.HAND_OFF: 4, Work.ARCHIVE: 5}, True)]


def test_what_does_not_fit_is_left_to_the_next_look() -> None:
    stage = Stage(TieringLimits(pending_max=2))
    for session_id in "abc":
        stage.tell(Ended(session_id))
    assert stage.stats(lambda s: s.waiting) == 2


def test_the_end_of_a_move_that_another_life_of_the_actor_began_is_no_matter() -> None:
    stage = Stage()
    stage.tell(Sealed("a"))
    job = stage.jobs.pop("hand_off:a")
    cell = stage.kernel.cells[TIERING]
    stage.kernel._drop_actor(cell)
    stage.kernel.job_ended(job, None, None)
    stage.take()
    assert stage.stats(lambda s: s.handed_over) == 0
    stage.pass_time(301)
    assert stage.jobs.keys() == {"look"}


def test_a_command_to_it_is_answered_as_to_a_session_that_is_not_there() -> None:
    stage = Stage()
    waiter = stage.hand.ask(TIERING, "no message of its own")
    stage.take()
    assert isinstance(waiter.error, NoSuchSession)
    assert stage.hand.conserved()
