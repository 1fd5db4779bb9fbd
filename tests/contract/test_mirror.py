"""What every mirror must do, whatever it is made of."""

import itertools
from collections.abc import AsyncIterator, Iterator, Mapping

import anyio
import pytest
from attrs import evolve

from sojourn.actors.errors import NotOpen
from sojourn.actors.ports import Mirror, MirrorAnswer, MirrorClaim, MirrorHead, MirrorUpdate
from sojourn.runtime.stores.memory import MemoryMirror
from sojourn.runtime.stores.mirror_redis import RedisMirror
from tests.support import redis

pytestmark = pytest.mark.anyio
OK, DUP, GAP, FENCED = MirrorAnswer.OK, MirrorAnswer.DUP, MirrorAnswer.GAP, MirrorAnswer.FENCED


def update(
    session_id: str,
    first_seq: int,
    last_seq: int,
    documents: Mapping[str, bytes | None] | None = None,
    *,
    epoch: int = 1,
    whole: bool = False,
) -> MirrorUpdate:
    return MirrorUpdate(
        session_id=session_id,
        epoch=epoch,
        first_seq=first_seq,
        last_seq=last_seq,
        events=() if whole else tuple(b"event %d" % seq for seq in range(first_seq, last_seq + 1)),
        documents=documents or {},
        whole=whole,
    )


class MirrorContract:
    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    async def test_an_unknown_session_is_empty(self, mirror: Mirror) -> None:
        assert await mirror.head("a") is None
        assert await mirror.documents("a") == {}
        assert await mirror.events("a") == []

    async def test_updates_in_order_are_folded(self, mirror: Mirror) -> None:
        assert await mirror.apply([update("a", 1, 2, {"x": b"1", "y": b"1"})]) == [OK]
        assert await mirror.apply([update("a", 3, 3, {"x": b"3", "y": None, "z": None})]) == [OK]
        assert await mirror.head("a") == MirrorHead(epoch=1, seq=3)
        assert await mirror.documents("a") == {"x": b"3"}
        assert await mirror.events("a", 1) == [(2, b"event 2"), (3, b"event 3")]

    async def test_each_update_of_a_batch_has_its_answer(self, mirror: Mirror) -> None:
        await mirror.apply([update("a", 1, 5), update("c", 1, 1, epoch=9)])
        batch = [
            update("a", 2, 5),
            update("b", 1, 1),
            update("c", 2, 2),
            update("d", 4, 4),
            update("b", 2, 2),
        ]
        assert await mirror.apply(batch) == [DUP, OK, FENCED, GAP, OK]

    async def test_a_batch_sent_again_changes_nothing(self, mirror: Mirror) -> None:
        batch = [update("a", 1, 2, {"x": b"1"}), update("b", 1, 1)]
        await mirror.apply(batch)
        assert await mirror.apply(batch) == [DUP, DUP]
        assert len(await mirror.events("a")) == 2

    @pytest.mark.parametrize(("first_seq", "last_seq"), [(5, 6), (3, 4)])
    async def test_what_does_not_follow_is_a_gap_and_changes_nothing(
        self, mirror: Mirror, first_seq: int, last_seq: int
    ) -> None:
        await mirror.apply([update("a", 1, 3, {"x": b"1"})])
        assert await mirror.apply([update("a", first_seq, last_seq, {"x": b"2"})]) == [GAP]
        assert await mirror.head("a") == MirrorHead(epoch=1, seq=3)
        assert await mirror.documents("a") == {"x": b"1"}

    async def test_a_lower_epoch_is_fenced(self, mirror: Mirror) -> None:
        await mirror.apply([update("a", 1, 1, epoch=2)])
        assert await mirror.apply([update("a", 2, 2)]) == [FENCED]
        assert await mirror.apply([update("a", 1, 9, whole=True)]) == [FENCED]
        assert await mirror.head("a") == MirrorHead(epoch=2, seq=1)

    async def test_a_higher_epoch_goes_on_where_the_mirror_stands(self, mirror: Mirror) -> None:
        await mirror.apply([update("a", 1, 1)])
        assert await mirror.apply([update("a", 2, 2, epoch=2)]) == [OK]
        assert await mirror.head("a") == MirrorHead(epoch=2, seq=2)

    async def test_what_a_former_owner_sent_last_is_a_gap_for_the_next(self, mirror: Mirror) -> None:
        await mirror.apply([update("a", 1, 3, {"x": b"never committed"})])
        assert await mirror.apply([update("a", 3, 3, {"x": b"3"}, epoch=2)]) == [GAP]
        assert await mirror.apply([update("a", 3, 3, {"x": b"3"}, epoch=2, whole=True)]) == [OK]
        assert await mirror.documents("a") == {"x": b"3"}
        assert await mirror.apply([update("a", 4, 4, epoch=2)]) == [OK]

    async def test_a_whole_session_replaces_what_stands(self, mirror: Mirror) -> None:
        await mirror.apply([update("a", 1, 3, {"x": b"1", "y": b"1"})])
        assert await mirror.apply([update("a", 1, 7, {"x": b"7"}, whole=True)]) == [OK]
        assert await mirror.head("a") == MirrorHead(epoch=1, seq=7)
        assert await mirror.documents("a") == {"x": b"7"}
        assert await mirror.events("a") == []

    async def test_a_whole_session_may_be_sent_again(self, mirror: Mirror) -> None:
        for document in (b"first", b"second"):
            assert await mirror.apply([update("a", 1, 7, {"x": document}, whole=True)]) == [OK]
        assert await mirror.documents("a") == {"x": b"second"}
        assert await mirror.head("a") == MirrorHead(epoch=1, seq=7)

    async def test_a_whole_session_replaces_what_somebody_moved_ahead(self, mirror: Mirror) -> None:
        await mirror.apply([update("a", 1, 7, {"x": b"7"}, whole=True)])
        assert await mirror.apply([update("a", 4, 4)]) == [GAP]
        assert await mirror.apply([update("a", 1, 3, {"x": b"3"}, whole=True)]) == [OK]
        assert await mirror.documents("a") == {"x": b"3"}
        assert await mirror.apply([update("a", 4, 4)]) == [OK]

    async def test_by_force_a_whole_session_replaces_a_higher_epoch(self, mirror: Mirror) -> None:
        await mirror.apply([update("a", 1, 1, {"x": b"1"}, epoch=9), update("b", 1, 1, epoch=9)])
        await mirror.remove("b", 9)
        forced = [evolve(update(name, 1, 2, {"x": b"2"}, whole=True), force=True) for name in "ab"]
        assert await mirror.apply(forced) == [OK, OK]
        assert await mirror.head("a") == MirrorHead(epoch=1, seq=2)
        assert await mirror.documents("b") == {"x": b"2"}

    async def test_an_update_without_events_asks_where_the_mirror_stands(self, mirror: Mirror) -> None:
        await mirror.apply([update("a", 1, 3)])
        assert await mirror.apply([update("a", 4, 3), update("a", 3, 2), update("b", 4, 3)]) == [
            DUP,
            GAP,
            GAP,
        ]
        assert await mirror.apply([update("a", 4, 3, epoch=2)]) == [OK]
        assert await mirror.head("a") == MirrorHead(epoch=2, seq=3)

    async def test_a_claim_is_held_by_its_owner_and_rises_with_its_epochs(self, mirror: Mirror) -> None:
        assert await mirror.epoch() == 0
        assert (await mirror.claim("me", 1)).answer is GAP
        assert (await mirror.claim("me", 1)).answer is OK
        assert (await mirror.claim("me", 3)).answer is GAP
        assert (await mirror.claim("me", 2)).answer is FENCED
        assert await mirror.epoch() == 3

    async def test_what_another_has_claimed_is_foreign_and_says_whose(self, mirror: Mirror) -> None:
        await mirror.claim("host:/data", 1)
        assert await mirror.claim("me", 9) == MirrorClaim(answer=MirrorAnswer.FOREIGN, owner="host:/data")
        assert (await mirror.claim("host:/data", 1)).answer is OK

    async def test_without_a_claim_the_epoch_is_the_highest_that_has_written(self, mirror: Mirror) -> None:
        await mirror.apply([update("a", 1, 1, epoch=4), update("b", 1, 1, epoch=2)])
        assert await mirror.epoch() == 4

    async def test_a_removed_session_is_gone(self, mirror: Mirror) -> None:
        await mirror.apply([update("a", 1, 1, {"x": b"1"}, epoch=2), update("b", 1, 1)])
        assert await mirror.remove("a", 1) is FENCED
        assert await mirror.head("a") is not None
        assert await mirror.remove("a", 2) is OK
        assert await mirror.remove("never-there", 1) is OK
        assert await mirror.head("a") is None
        assert await mirror.documents("a") == {}
        assert await mirror.head("b") is not None

    async def test_after_a_removal_a_lower_epoch_is_still_fenced(self, mirror: Mirror) -> None:
        await mirror.apply([update("a", 1, 1, epoch=2)])
        assert await mirror.remove("a", 2, "archive") is OK
        assert await mirror.remove("a", 2, "archive") is OK
        assert await mirror.remove("a", 1) is FENCED
        assert await mirror.apply([update("a", 1, 1), update("a", 1, 1, whole=True)]) == [FENCED, FENCED]
        assert await mirror.apply([update("a", 1, 1, epoch=2)]) == [OK]

    async def test_a_trimmed_session_keeps_its_documents_and_later_events(self, mirror: Mirror) -> None:
        await mirror.apply([update("a", 1, 5, {"x": b"5"}, epoch=2)])
        assert await mirror.trim("a", 1, 5) is FENCED
        assert await mirror.trim("a", 2, 3) is OK
        assert await mirror.trim("never-there", 2, 3) is OK
        assert await mirror.events("a") == [(4, b"event 4"), (5, b"event 5")]
        assert await mirror.documents("a") == {"x": b"5"}

    async def test_a_session_goes_on_after_all_its_events_were_trimmed(self, mirror: Mirror) -> None:
        await mirror.apply([update("a", 1, 5, {"x": b"5"})])
        assert await mirror.trim("a", 1, 5) is OK
        assert await mirror.trim("a", 1, 5) is OK
        assert await mirror.events("a") == []
        assert await mirror.apply([update("a", 5, 5), update("a", 6, 6)]) == [DUP, OK]
        assert await mirror.events("a") == [(6, b"event 6")]

    async def test_a_whole_session_brings_its_last_events(self, mirror: Mirror) -> None:
        await mirror.apply([update("a", 1, 2)])
        whole = MirrorUpdate(
            session_id="a",
            epoch=1,
            first_seq=1,
            last_seq=9,
            events=(b"8", b"9"),
            documents={"x": b"9"},
            whole=True,
        )
        assert await mirror.apply([whole, update("a", 10, 10)]) == [OK, OK]
        assert await mirror.events("a") == [(8, b"8"), (9, b"9"), (10, b"event 10")]

    async def test_a_large_whole_session_and_what_follows_it_come_in_one_batch(self, mirror: Mirror) -> None:
        documents = {f"result/{n}": b"%d" % n * 400 for n in range(3_000)}
        documents["one"] = b"x" * 600_000
        whole = MirrorUpdate(
            session_id="a",
            epoch=1,
            first_seq=1,
            last_seq=2_000,
            events=tuple(b"%d" % n * 100 for n in range(1, 2_001)),
            documents={**documents, "gone": None},
            whole=True,
        )
        await mirror.apply([update("a", 1, 2, {"old": b"1"}), update("b", 1, 1)])
        later = update("a", 2_001, 2_001, {"x": b"1", "one": None})
        assert await mirror.apply([update("b", 2, 2), whole, later, update("b", 3, 3)]) == [OK, OK, OK, OK]
        del documents["one"]
        assert await mirror.documents("a") == {**documents, "x": b"1"}
        assert await mirror.events("a") == [
            *((n, b"%d" % n * 100) for n in range(1, 2_001)),
            (2_001, b"event 2001"),
        ]

    async def test_a_large_whole_session_without_events_or_without_documents(self, mirror: Mirror) -> None:
        await mirror.apply([update("a", 1, 3, {"old": b"1"}), update("b", 1, 3, {"old": b"1"})])
        documents = {str(n): b"x" * 100_000 for n in range(5)}
        events = (b"e" * 200_000, b"f" * 200_000)
        batch = [
            MirrorUpdate(
                session_id="a", epoch=1, first_seq=1, last_seq=4, events=(), documents=documents, whole=True
            ),
            MirrorUpdate(
                session_id="b", epoch=1, first_seq=1, last_seq=4, events=events, documents={}, whole=True
            ),
        ]
        assert await mirror.apply(batch) == [OK, OK]
        assert await mirror.apply(batch) == [OK, OK]
        assert (await mirror.documents("a"), await mirror.events("a")) == (documents, [])
        assert (await mirror.documents("b"), await mirror.events("b")) == (
            {},
            [(3, events[0]), (4, events[1])],
        )

    async def test_an_update_may_touch_thousands_of_documents(self, mirror: Mirror) -> None:
        names = [f"n{n}" for n in range(10_000)]
        assert await mirror.apply([update("a", 1, 1, dict.fromkeys(names, b"x"))]) == [OK]
        assert len(await mirror.documents("a")) == 10_000
        assert await mirror.apply([update("a", 2, 2, dict.fromkeys(names[1:]))]) == [OK]
        assert await mirror.documents("a") == {"n0": b"x"}

    async def test_any_bytes_and_any_name_come_back(self, mirror: Mirror) -> None:
        documents = {"": b"", "ä/{b}:c\n": bytes(range(256)), " ": b"\r\n", "a@": b"x"}
        assert await mirror.apply([update("a", 1, 1, documents)]) == [OK]
        assert await mirror.documents("a") == documents

    async def test_all_heads_are_told(self, mirror: Mirror) -> None:
        assert await mirror.heads() == {}
        ids = [f"sess_{n:032x}" for n in range(1_200)]
        await mirror.apply(
            [update(session_id, 1, 3, {"x": b""}, epoch=n + 1) for n, session_id in enumerate(ids)]
        )
        await mirror.remove(ids[0], 1)
        assert await mirror.heads() == {
            session_id: MirrorHead(epoch=n + 1, seq=3) for n, session_id in enumerate(ids) if n
        }

    async def test_what_can_be_no_name_is_refused_before_anything_is_done(self, mirror: Mirror) -> None:
        for session_id in ("", "a b", "a:b", "{a}", "ä", "a" * 129, "a\n"):
            with pytest.raises(ValueError, match="no session id"):
                await mirror.apply([update("a", 1, 1), update(session_id, 1, 1)])
        with pytest.raises(ValueError, match="@epoch"):
            await mirror.apply([update("a", 1, 1), update("b", 1, 1, {"@epoch": b"9"})])
        assert await mirror.heads() == {}

    async def test_an_empty_batch_has_no_answers(self, mirror: Mirror) -> None:
        assert await mirror.apply([]) == []

    async def test_batches_are_applied_in_the_order_of_the_calls(self, mirror: Mirror) -> None:
        answers: list[MirrorAnswer] = []

        async def apply(number: int) -> None:
            answers.extend(await mirror.apply([update("a", number, number), update("b", number, number)]))

        async with anyio.create_task_group() as tasks:
            for number in range(1, 51):
                tasks.start_soon(apply, number)
                await anyio.lowlevel.checkpoint()
        assert answers == [OK] * 100

    async def test_what_a_cancelled_caller_began_is_carried_out(self, mirror: Mirror) -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await mirror.apply([update("a", 1, 1)])
        assert await mirror.apply([update("a", 1, 1), update("a", 2, 2)]) in ([DUP, OK], [OK, OK])

    async def test_a_closed_mirror_says_so(self, mirror: Mirror) -> None:
        await mirror.close()
        with pytest.raises(NotOpen):
            await mirror.apply([update("a", 1, 1)])
        with pytest.raises(NotOpen):
            await mirror.head("a")

    async def test_closing_again_does_nothing(self, mirror: Mirror) -> None:
        await mirror.close()
        await mirror.close()


class TestMemoryMirror(MirrorContract):
    @pytest.fixture
    def mirror(self) -> Mirror:
        return MemoryMirror()

    async def test_a_session_that_was_lost_is_a_gap(self, mirror: MemoryMirror) -> None:
        await mirror.apply([update("a", 1, 1), update("b", 1, 1)])
        mirror.lose("a")
        assert await mirror.apply([update("a", 2, 2), update("b", 2, 2)]) == [GAP, OK]


class RedisMirrorContract(MirrorContract):
    """On asyncio alone: the driver knows no other loop."""

    server_name = ""

    @pytest.fixture(params=["asyncio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[redis.Server]:
        with redis.serving(cls.server_name) as server:
            yield server

    @pytest.fixture
    async def mirror(self, server: redis.Server) -> AsyncIterator[Mirror]:
        mirror = await RedisMirror.open(server.unix, namespace=f"n{next(_NUMBERS)}")
        yield mirror
        await mirror.close()


_NUMBERS = itertools.count()


class TestRedisMirrorOnValkey(RedisMirrorContract):
    server_name = "valkey"


class TestRedisMirrorOnRedis(RedisMirrorContract):
    server_name = "redis"


class TestRedisMirrorOnACluster(RedisMirrorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[redis.Server]:
        with redis.cluster() as servers:
            yield servers[0]

    @pytest.fixture
    async def mirror(self, server: redis.Server) -> AsyncIterator[Mirror]:
        mirror = await RedisMirror.open(server.tcp, namespace=f"n{next(_NUMBERS)}")
        yield mirror
        await mirror.close()
