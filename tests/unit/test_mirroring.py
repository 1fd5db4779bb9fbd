"""The mirror writer over a mirror in memory that goes away, forgets and is changed, on virtual time."""

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import trio
from trio.testing import MockClock

from sojourn.actors.errors import (
    Damaged,
    DeadlineExceeded,
    DurabilityUnavailable,
    StaleEpoch,
    StorageFull,
    StoreError,
    StoreUnavailable,
)
from sojourn.actors.kernel.park import parking
from sojourn.actors.mirror_waiting import Following
from sojourn.actors.mirroring import LEVEL_EVERY_S, MirrorWriter
from sojourn.actors.ports import Mirror, MirrorAnswer, MirrorHead, MirrorUpdate, Record
from sojourn.actors.session.actor import Done
from sojourn.runtime.stores.memory import MemoryMirror

pytestmark = pytest.mark.trio

LONG_S = 30.0  # of virtual time


class Sessions:
    """Sessions whose only document is their last event."""

    def __init__(self) -> None:
        self.seqs: dict[str, int] = {}
        self.strays: list[tuple[str, MirrorHead]] = []
        self.unreadable: set[str] = set()
        self.copies = 0
        self.following: list[Sequence[str]] = []

    def heads(self) -> Mapping[str, int]:
        return self.seqs

    async def whole(self, session_id: str, following: Callable[[], Sequence[str]]) -> MirrorUpdate | None:
        self.following.append(following())
        await anyio.sleep(0.01)
        if session_id in self.unreadable:
            raise Damaged("it is")
        seq = self.seqs.get(session_id)
        if seq is None:
            return None
        self.copies += 1
        events = tuple(line(n)[:-1] for n in range(1, seq + 1))
        return MirrorUpdate(
            session_id=session_id,
            epoch=1,
            first_seq=1,
            last_seq=seq,
            events=events,
            documents={"last": line(seq)},
            whole=True,
        )

    async def found(self, mirror: Mirror, session_id: str, head: MirrorHead) -> None:
        self.strays.append((session_id, head))

    def commit(self, session_id: str, count: int = 1) -> Record:
        first_seq = self.seqs.get(session_id, 0) + 1
        last_seq = self.seqs[session_id] = first_seq + count - 1
        payload = b"".join(map(line, range(first_seq, last_seq + 1)))
        return Record(session_id, first_seq, count, 1, payload, documents={"last": line(last_seq)})


def line(seq: int) -> bytes:
    return b"event %d\n" % seq


class Moody(MemoryMirror):
    """Fails as it is told to: each call takes the next error, where there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: deque[StoreError | None] = deque()
        self.down: StoreError | None = None
        self.no_heads: StoreError | None = None
        self.calls = self.batches_most = self.under_way = 0

    async def apply(self, batch: Sequence[MirrorUpdate]) -> list[MirrorAnswer]:
        self.calls += 1
        self.under_way += 1
        self.batches_most = max(self.batches_most, self.under_way)
        try:
            await anyio.sleep(0.005)
            error = self.errors.popleft() if self.errors else None
            if self.down is not None:
                raise self.down
            answers = await super().apply(batch)
            if error is not None:  # its answer was lost
                raise error
            return answers
        finally:
            self.under_way -= 1

    async def claim(self, owner: str, epoch: int):  # type: ignore[no-untyped-def]
        if self.down is not None:
            raise self.down
        return await super().claim(owner, epoch)

    async def heads(self) -> dict[str, MirrorHead]:
        if self.no_heads is not None:
            raise self.no_heads
        return await super().heads()


class Setup:
    def __init__(self, **options: Any) -> None:
        self.sessions = Sessions()
        self.mirror = Moody()
        self.writer = MirrorWriter(self.connect, self.sessions, owner="me", epoch=1, **options)

    async def connect(self) -> Mirror:
        await anyio.sleep(0.001)
        if self.mirror.down is not None:
            raise self.mirror.down
        return self.mirror

    def commit(self, session_id: str, count: int = 1) -> int:
        self.writer.offer([self.sessions.commit(session_id, count)])
        return self.sessions.seqs[session_id]

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(LONG_S):
            while not condition():
                await trio.sleep(0.01)

    async def level(self) -> None:
        await self.until(lambda: self.writer.statistics().state == "level")
        for session_id, seq in self.sessions.seqs.items():
            head = await self.mirror.head(session_id)
            assert head == MirrorHead(epoch=1, seq=seq)
            assert await self.mirror.documents(session_id) == {"last": line(seq)}
            events = await self.mirror.events(session_id)
            assert events == [(n, line(n)[:-1]) for n in range(seq - len(events) + 1, seq + 1)]

    async def mirrored(self, session_id: str, seq: int, deadline_s: float = 10.0) -> None:
        await self.writer.reached(session_id, seq, parking()(), deadline_s)


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Setup]:
    setup = Setup(**options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.writer.run, lambda: None)
        await setup.until(lambda: setup.writer.statistics().state == "level")
        yield setup
        nursery.cancel_scope.cancel()


async def test_what_is_committed_stands_in_the_mirror(autojump_clock: MockClock) -> None:
    async with running() as setup:
        for _ in range(20):
            for session_id in "abc":
                setup.commit(session_id, 3)
            await trio.sleep(0.001)
        await setup.level()
        found = setup.writer.statistics()
        assert (found.events, found.rewritten, found.events_behind, found.bytes_behind) == (180, 0, 0, 0)
        assert setup.mirror.batches_most == 1  # three sessions, each in one batch at a time
        assert found.updates < 60  # commits gathered


async def test_two_batches_are_under_way_at_once(autojump_clock: MockClock) -> None:
    async with running() as setup:
        for number in range(600):
            setup.commit(f"s{number}")
        await setup.level()
        assert setup.mirror.batches_most == 2
        assert setup.mirror.calls == 3


async def test_mirrored_is_answered_once_it_is_there(autojump_clock: MockClock) -> None:
    async with running() as setup:
        seq = setup.commit("a")
        assert setup.writer.mirrored_seq("a") == 0
        await setup.mirrored("a", seq)
        assert (await setup.mirror.head("a")) == MirrorHead(epoch=1, seq=1)
        assert setup.writer.mirrored_seq("a") == 1


async def test_an_answer_that_follows_the_mirror_leaves_once_it_is_there(autojump_clock: MockClock) -> None:
    async with running() as setup:
        parked = parking()()
        following = Following(setup.writer, "a", parked, 10.0)
        seq = setup.commit("a")
        following.set_result(Done(seq))
        assert (following.is_durable, following.done()) == (True, False)
        assert await following == Done(seq)
        assert await setup.mirror.head("a") == MirrorHead(epoch=1, seq=seq)


async def test_an_answer_that_cannot_follow_the_mirror_says_so_and_is_durable(
    autojump_clock: MockClock,
) -> None:
    async with running() as setup:
        setup.writer.stop()
        following = Following(setup.writer, "a", parking()(), 10.0)
        following.set_result(Done(setup.commit("a")))
        with pytest.raises(DurabilityUnavailable, match="has stopped"):
            await following
        assert following.is_durable


async def test_a_refusal_follows_no_mirror(autojump_clock: MockClock) -> None:
    async with running() as setup:
        following = Following(setup.writer, "a", parking()(), 10.0)
        following.set_exception(StorageFull("the disk is full"))
        with pytest.raises(StorageFull):
            await following
        assert not following.is_durable


async def test_mirrored_of_what_was_mirrored_long_ago_is_asked_again(autojump_clock: MockClock) -> None:
    """The server may have lost it since, and then it is sent before the answer."""
    async with running() as setup:
        seq = setup.commit("a")
        await setup.level()
        setup.mirror.lose("a")
        await setup.mirrored("a", seq)
        assert (await setup.mirror.head("a")) == MirrorHead(epoch=1, seq=1)


async def test_who_asks_between_a_commit_and_its_offer_changes_no_number_of_it(
    autojump_clock: MockClock,
) -> None:
    async with running() as setup:
        setup.commit("a", 2)
        await setup.level()
        record = setup.sessions.commit("a")
        waiting = setup.writer.reached("a", 3, parking()(), 10.0)
        setup.writer.offer([record])
        await waiting
        assert (await setup.mirror.events("a"))[-1] == (3, line(3)[:-1])
        await setup.level()
        assert setup.writer.statistics().rewritten == 0


async def test_a_batch_whose_answer_was_lost_is_sent_again_and_changes_nothing(
    autojump_clock: MockClock,
) -> None:
    async with running() as setup:
        setup.mirror.errors.append(StoreUnavailable("its answer was lost"))
        setup.commit("a", 2)
        await trio.sleep(0.001)
        setup.commit("a", 2)  # while the first is under way
        await setup.level()
        assert setup.writer.statistics().rewritten == 0


async def test_while_the_mirror_is_away_mirrored_is_refused_and_afterwards_it_is_level(
    autojump_clock: MockClock,
) -> None:
    async with running() as setup:
        setup.mirror.down = StoreUnavailable("gone")
        seq = setup.commit("a")
        with pytest.raises(DurabilityUnavailable, match="gone") as refused:
            await setup.mirrored("a", seq)
        told = refused.value
        assert (told.reached, told.session_id, told.seq) == ("durable", "a", seq)
        with pytest.raises(
            DurabilityUnavailable, match=f"durable, at seq {seq}"
        ):  # at once, now that it is known
            await setup.mirrored("a", seq)
        assert setup.writer.statistics().state == "away"
        assert setup.writer.statistics().events_behind == 1
        setup.commit("a", 5)
        setup.commit("b")
        setup.mirror.down = None
        await setup.level()
        assert setup.writer.statistics().last_error is None


async def test_a_full_mirror_is_said(autojump_clock: MockClock) -> None:
    async with running() as setup:
        setup.mirror.down = StorageFull("no memory")
        setup.commit("a")
        await setup.until(lambda: setup.writer.statistics().state == "full")
        setup.mirror.down = None
        await setup.level()


async def test_a_mirror_that_lost_everything_is_made_level_whoever_was_active(
    autojump_clock: MockClock,
) -> None:
    async with running() as setup:
        for session_id in "abc":
            setup.commit(session_id, 4)
        await setup.level()
        setup.mirror.lose()
        await trio.sleep(5)
        await setup.level()
        assert setup.writer.statistics().rewritten == 3


async def test_a_session_that_somebody_took_away_comes_back_by_itself(autojump_clock: MockClock) -> None:
    async with running() as setup:
        setup.commit("a", 4)
        await setup.level()
        setup.mirror.lose("a")
        await trio.sleep(LEVEL_EVERY_S + 5)
        await setup.level()


async def test_a_higher_epoch_in_one_session_is_somebody_elses_doing(autojump_clock: MockClock) -> None:
    async with running() as setup:
        setup.commit("a", 4)
        await setup.level()
        await setup.mirror.apply(
            [
                MirrorUpdate(
                    session_id="a", epoch=9, first_seq=1, last_seq=99, events=(), documents={}, whole=True
                )
            ]
        )
        setup.commit("a")
        await setup.level()
        assert setup.writer.statistics().altered == 1


async def test_a_later_process_that_claims_the_mirror_stops_this_one(autojump_clock: MockClock) -> None:
    with pytest.RaisesGroup(StaleEpoch):
        async with running() as setup:
            await setup.mirror.claim("me", 2)
            await trio.sleep(LONG_S)


async def test_a_namespace_of_another_is_left_alone(autojump_clock: MockClock) -> None:
    setup = Setup()
    await setup.mirror.claim("another", 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.writer.run, lambda: None)
        setup.commit("a")
        await setup.until(lambda: setup.writer.statistics().state == "unusable")
        assert "another" in (setup.writer.statistics().last_error or "")
        assert await setup.mirror.heads() == {}
        nursery.cancel_scope.cancel()


async def test_what_is_held_for_an_absent_mirror_is_bounded(autojump_clock: MockClock) -> None:
    async with running(held_bytes_max=1_000) as setup:
        setup.mirror.down = StoreUnavailable("gone")
        for number in range(2_000):
            setup.commit(f"s{number % 50}", 3)
            assert setup.writer.statistics().bytes_behind <= 2_000
            await trio.sleep(0.001)
        assert setup.writer.statistics().sessions_behind == 50
        setup.mirror.down = None
        await setup.level()
        assert setup.writer.statistics().bytes_behind == 0


async def test_commits_go_on_while_a_session_is_sent_whole(autojump_clock: MockClock) -> None:
    async with running() as setup:
        setup.commit("a", 10)
        await setup.level()
        setup.mirror.lose("a")
        for _ in range(200):
            setup.commit("a")
            await trio.sleep(0.001)
        await setup.level()
        assert setup.sessions.copies == 1


async def test_a_session_that_moves_leaves_the_mirror_and_says_where_to(autojump_clock: MockClock) -> None:
    async with running() as setup:
        setup.commit("a")
        setup.commit("b")
        await trio.sleep(0.002)  # in a batch
        for session_id in "ab":
            del setup.sessions.seqs[session_id]
            setup.writer.moved(session_id, "recent")
        await trio.sleep(1)
        assert await setup.mirror.heads() == {}
        with pytest.raises(DurabilityUnavailable, match="handed over"):
            await setup.mirrored("a", 1)


async def test_a_session_that_moves_while_it_waits_for_its_turn_is_not_sent_any_more(
    autojump_clock: MockClock,
) -> None:
    async with running() as setup:
        blocked = trio.Event()

        class Stuck(Moody):
            async def apply(self, batch: Sequence[MirrorUpdate]) -> list[MirrorAnswer]:
                await blocked.wait()
                return await super().apply(batch)

        setup.mirror.__class__ = Stuck
        for session_id in ("under way", "under way, too", "waits"):
            setup.commit(session_id.replace(", ", "-").replace(" ", "-"))
            await trio.sleep(0.01)
        del setup.sessions.seqs["waits"]
        setup.writer.moved("waits", "recent")
        blocked.set()
        await setup.level()
        assert await setup.mirror.head("waits") is None


async def test_a_removal_waits_for_the_mirror_to_come_back(autojump_clock: MockClock) -> None:
    async with running() as setup:
        setup.commit("a")
        await setup.level()
        setup.mirror.down = StoreUnavailable("gone")
        del setup.sessions.seqs["a"]
        setup.commit("b")
        setup.writer.moved("a", "recent")
        await trio.sleep(3)
        setup.mirror.down = None
        await trio.sleep(3)
        assert list(await setup.mirror.heads()) == ["b"]


async def test_what_was_held_for_a_session_that_moved_is_held_no_more(autojump_clock: MockClock) -> None:
    async with running() as setup:
        setup.mirror.down = StoreUnavailable("gone")
        setup.commit("a", 3)
        await setup.until(lambda: setup.writer.statistics().state == "away")
        setup.commit("a", 3)
        del setup.sessions.seqs["a"]
        setup.writer.moved("a", "recent")
        assert setup.writer.statistics().bytes_behind == 0
        setup.mirror.down = None
        setup.commit("b")
        await setup.level()
        assert setup.writer.statistics().bytes_behind == 0


async def test_events_that_a_snapshot_holds_leave_the_mirror(autojump_clock: MockClock) -> None:
    async with running() as setup:
        setup.commit("a", 5)
        await setup.level()
        setup.writer.snapshotted("a", 3)
        await trio.sleep(1)
        assert [seq for seq, _ in await setup.mirror.events("a")] == [4, 5]


async def test_what_stands_in_the_mirror_alone_is_told(autojump_clock: MockClock) -> None:
    setup = Setup()
    await setup.mirror.apply(
        [MirrorUpdate(session_id="old", epoch=1, first_seq=1, last_seq=1, events=(b"x",), documents={})]
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.writer.run, lambda: None)
        await setup.until(lambda: bool(setup.sessions.strays))
        assert setup.sessions.strays == [("old", MirrorHead(epoch=1, seq=1))]
        nursery.cancel_scope.cancel()


async def test_a_look_at_what_the_mirror_alone_has_is_done_anew_where_it_was_broken_off(
    autojump_clock: MockClock,
) -> None:
    setup = Setup()
    await setup.mirror.apply(
        [MirrorUpdate(session_id="old", epoch=1, first_seq=1, last_seq=1, events=(b"x",), documents={})]
    )
    setup.mirror.no_heads = StoreUnavailable("it was killed meanwhile")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.writer.run, lambda: None)
        await setup.until(lambda: setup.writer.statistics().state == "away")
        setup.mirror.no_heads = None
        await setup.until(lambda: bool(setup.sessions.strays))
        nursery.cancel_scope.cancel()


async def test_a_claim_that_another_part_made_anew_has_all_sessions_looked_at(
    autojump_clock: MockClock,
) -> None:
    async with running() as setup:
        for session_id in "ab":
            setup.commit(session_id, 3)
        await setup.level()
        await setup.mirror.apply(
            [
                MirrorUpdate(
                    session_id="a", epoch=9, first_seq=1, last_seq=9, events=(), documents={}, whole=True
                )
            ]
        )
        setup.mirror._claimed = None
        setup.mirror.lose("b")  # it rests: nobody would notice before the next look at all sessions
        setup.commit("a")  # answered `fenced`, and who does that asks who holds the claim
        with trio.fail_after(LONG_S):
            while await setup.mirror.head("b") is None:
                await trio.sleep(0.01)


async def test_a_session_that_cannot_be_read_holds_up_no_other(autojump_clock: MockClock) -> None:
    async with running() as setup:
        setup.sessions.unreadable.add("a")
        setup.commit("a", 2)
        await setup.level()
        setup.mirror.lose("a")
        seq = setup.commit("a")
        with pytest.raises(DurabilityUnavailable, match="cannot be read"):
            await setup.mirrored("a", seq)
        await setup.mirrored("b", setup.commit("b"))
        assert setup.writer.statistics().sessions_behind == 0


async def test_an_ask_for_mirrored_has_its_deadline(autojump_clock: MockClock) -> None:
    async with running() as setup:
        blocked = trio.Event()

        class Stuck(Moody):
            async def apply(self, batch: Sequence[MirrorUpdate]) -> list[MirrorAnswer]:
                await blocked.wait()
                return await super().apply(batch)

        setup.mirror.__class__ = Stuck
        with pytest.raises(DeadlineExceeded):
            await setup.mirrored("a", setup.commit("a"), deadline_s=1.0)
        blocked.set()
        await setup.level()


async def test_who_waits_for_mirrored_while_the_runtime_stops_hears_that_it_is_durable(
    autojump_clock: MockClock,
) -> None:
    async with running() as setup, trio.open_nursery() as asker:
        seq = setup.commit("a")

        async def ask() -> None:
            with pytest.raises(DurabilityUnavailable, match="what was asked of a is durable, at seq"):
                await setup.mirrored("a", seq)

        asker.start_soon(ask)
        await trio.lowlevel.checkpoint()
        setup.writer.stop()
        with pytest.raises(DurabilityUnavailable, match="has stopped"):
            await setup.mirrored("a", seq)


async def test_a_writer_that_is_started_again_goes_on(autojump_clock: MockClock) -> None:
    async with running() as setup:
        setup.commit("a", 3)
        await setup.level()
    setup.commit("a", 3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.writer.run, lambda: None)
        await setup.level()
        nursery.cancel_scope.cancel()
