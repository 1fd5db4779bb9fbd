"""What every mirror must do, whatever it is made of."""

from collections.abc import Mapping

import pytest

from sojourn.actors.ports import Mirror, MirrorAnswer, MirrorHead, MirrorUpdate
from sojourn.runtime.stores.memory import MemoryMirror

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

    async def test_an_older_whole_session_is_a_double(self, mirror: Mirror) -> None:
        await mirror.apply([update("a", 1, 7, {"x": b"7"}, whole=True)])
        assert await mirror.apply([update("a", 1, 3, {"x": b"3"}, whole=True)]) == [DUP]
        assert await mirror.documents("a") == {"x": b"7"}

    async def test_a_removed_session_is_gone(self, mirror: Mirror) -> None:
        await mirror.apply([update("a", 1, 1, {"x": b"1"}, epoch=2), update("b", 1, 1)])
        assert await mirror.remove("a", 1) is FENCED
        assert await mirror.head("a") is not None
        assert await mirror.remove("a", 2) is OK
        assert await mirror.remove("never there", 1) is OK
        assert await mirror.head("a") is None
        assert await mirror.documents("a") == {}
        assert await mirror.head("b") is not None

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
