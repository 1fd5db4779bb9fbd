"""When sessions are ended that nobody was heard of: the looking, on a virtual clock."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from attrs import define, field

from sojourn.actors.errors import SetAside, SojournError, StorageFull
from sojourn.actors.ports import CatalogRow, Record
from sojourn.actors.session.actor import GiveUp
from sojourn.runtime.abandoning import Abandoner, look_every_s, reason_for
from sojourn.runtime.stores.memory import MemoryCatalog, MemoryJournal

pytestmark = pytest.mark.trio
DAY_S = 86_400.0
START = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)


class VirtualClock:
    """Both clocks are trio's, which jumps."""

    def now(self) -> datetime:
        return START + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        return trio.current_time() - self.zero

    def __init__(self) -> None:
        self.zero = trio.current_time()


class CountingCatalog(MemoryCatalog):
    """Says how many rows were asked for by their id."""

    gets = 0

    async def get(self, session_id: str) -> CatalogRow | None:
        self.gets += 1
        return await super().get(session_id)


@define(eq=False)
class Stage:
    """An `Abandoner` at work over stores in memory; `ended` says when, after the start, each session was given up."""

    clock: VirtualClock = field(factory=VirtualClock)
    journal: MemoryJournal = field(factory=MemoryJournal)
    catalog: CountingCatalog = field(factory=CountingCatalog)
    signs: dict[str, float] = field(factory=dict)
    set_aside: set[str] = field(factory=set)
    refusing: bool = False
    errors: dict[str, SojournError] = field(factory=dict)
    ended: dict[str, float] = field(factory=dict)
    messages: list[GiveUp] = field(factory=list)
    after_s: float = DAY_S

    @property
    def now_s(self) -> float:
        return self.clock.monotonic()

    async def session(
        self, session_id: str, *, status: str = "running", seq: int = 3, row_seq: int | None = None
    ) -> None:
        """One whose last event was a week ago."""
        await self.journal.append([Record(session_id, 1, seq, 1, b"")])
        await self.catalog.put([row(session_id, status=status, seq=row_seq or seq)])

    async def give_up(self, session_id: str, message: GiveUp) -> bool:
        await trio.lowlevel.checkpoint()
        if session_id in self.errors:
            raise self.errors[session_id]
        self.messages.append(message)
        self.ended[session_id] = self.now_s
        await self.catalog.put([row(session_id, status="abandoned", seq=message.seq + 1)])
        return True

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[Abandoner]:
        abandoner = Abandoner(
            journal=self.journal,
            catalog=self.catalog,
            clock=self.clock,
            silent_s=lambda session_id: self.now_s - self.signs.get(session_id, 0.0),
            give_up=self.give_up,
            is_set_aside=self.set_aside.__contains__,
            hindered=lambda: self.refusing,
            after_s=self.after_s,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(abandoner.run, lambda: None)
            yield abandoner
            nursery.cancel_scope.cancel()


def row(session_id: str, *, status: str, seq: int, updated_at: datetime | None = None) -> CatalogRow:
    return CatalogRow(
        session_id=session_id,
        seq=seq,
        epoch=1,
        tier="active",
        status=status,
        outcome=None,
        plan="p",
        title="",
        user_id="",
        created_at=START - timedelta(days=8),
        updated_at=updated_at or START - timedelta(days=7),
        record=b"{}",
    )


def said(logged: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    return [(line["event"], line["session"]) for line in logged if line["log_level"] == "error"]


@pytest.mark.parametrize("status", ["created", "running", "paused"])
async def test_a_silent_session_is_ended_once_the_time_has_passed_since_the_start(
    autojump_clock: trio.testing.MockClock, status: str
) -> None:
    stage = Stage()
    await stage.session("a", status=status)
    async with stage.looking() as abandoner:
        await trio.sleep(DAY_S - 1)
        assert stage.ended == {}
        await trio.sleep(2 * look_every_s(DAY_S))
        assert DAY_S <= stage.ended["a"] <= DAY_S + 1.2 * look_every_s(DAY_S)
        before = START + timedelta(seconds=stage.ended["a"] - DAY_S)
        assert stage.messages == [GiveUp(3, "no sign of life for 24 h", before)]
        await trio.sleep(2 * DAY_S)
        assert (len(stage.messages), abandoner.abandoned) == (1, 1)


async def test_a_sign_of_life_puts_it_off_by_the_whole_time(autojump_clock: trio.testing.MockClock) -> None:
    stage = Stage()
    await stage.session("a")
    async with stage.looking():
        for _ in range(5):
            await trio.sleep(DAY_S / 2)
            stage.signs["a"] = stage.now_s
        last_s = stage.now_s
        await trio.sleep(2 * DAY_S)
        assert last_s + DAY_S <= stage.ended["a"] <= last_s + DAY_S + 1.2 * look_every_s(DAY_S)


async def test_a_sign_of_life_that_comes_while_it_looks_counts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    for session_id in ("a", "b"):
        await stage.session(session_id)
    async with stage.looking() as abandoner:
        await trio.sleep(DAY_S)
        found = await abandoner._silent()
        assert found == ["a", "b"]
        stage.signs["b"] = stage.now_s
        assert [session_id for session_id in found if await abandoner._is_due(session_id)] == ["a"]


async def test_those_are_left_alone_that_have_ended_are_set_aside_or_whose_row_says_something_else(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    await stage.session("due")
    for status in ("completed", "failed", "cancelled", "abandoned"):
        await stage.session(status, status=status)
    await stage.session("aside")
    stage.set_aside.add("aside")
    await stage.session("behind", row_seq=2)
    await stage.session("ahead", row_seq=4)
    await stage.session("fresh")
    await stage.catalog.put([row("fresh", status="running", seq=3, updated_at=START + timedelta(days=7))])
    async with stage.looking():
        await trio.sleep(3 * DAY_S)
    assert list(stage.ended) == ["due"]


async def test_nothing_is_ended_while_changes_are_refused_and_all_of_it_afterwards(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage(refusing=True)
    for session_id in ("a", "b"):
        await stage.session(session_id)
    async with stage.looking():
        await trio.sleep(2 * DAY_S)
        assert stage.ended == {}
        stage.refusing = False
        await trio.sleep(2 * look_every_s(DAY_S))
    assert set(stage.ended) == {"a", "b"}


async def test_one_that_cannot_be_ended_is_said_once_and_keeps_no_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage(errors={"a": SetAside("a", 1, 2)})
    for session_id in ("a", "b"):
        await stage.session(session_id)
    with structlog.testing.capture_logs() as logged:
        async with stage.looking():
            await trio.sleep(2 * DAY_S)
            assert list(stage.ended) == ["b"]
            del stage.errors["a"]
            await trio.sleep(2 * look_every_s(DAY_S))
    assert set(stage.ended) == {"a", "b"}
    assert said(logged) == [("session.not_abandoned", "a")]


async def test_a_store_that_fails_ends_the_look_and_is_said_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage(errors={"a": StorageFull("no room")})
    for session_id in ("a", "b"):
        await stage.session(session_id)
    with structlog.testing.capture_logs() as logged:
        async with stage.looking():
            await trio.sleep(2 * DAY_S)
            assert stage.ended == {}
            stage.errors.clear()
            await trio.sleep(2 * look_every_s(DAY_S))
    assert set(stage.ended) == {"a", "b"}
    assert said(logged) == [("session.not_abandoned", None)]


async def test_fifty_thousand_that_show_life_cost_no_row(autojump_clock: trio.testing.MockClock) -> None:
    stage = Stage()
    ids = [f"s{n}" for n in range(50_000)]
    await stage.journal.append([Record(session_id, 1, 3, 1, b"") for session_id in ids])
    await stage.catalog.put([row(session_id, status="running", seq=3) for session_id in ids])
    async with stage.looking() as abandoner:
        await trio.sleep(DAY_S)
        stage.signs.update(dict.fromkeys(ids, stage.now_s))
        await abandoner.look()
    assert (stage.catalog.gets, stage.ended) == (0, {})


async def test_for_ever_means_never(autojump_clock: trio.testing.MockClock) -> None:
    stage = Stage(after_s=float("inf"))
    await stage.session("a")
    async with stage.looking() as abandoner:
        await trio.sleep(1_000 * DAY_S)
        await abandoner.look()
    assert stage.ended == {}


@pytest.mark.parametrize(
    ("after_s", "said_so", "every_s"),
    [(86_400.0, "24 h", 300.0), (5_400.0, "1.5 h", 300.0), (90.0, "90 s", 9.0), (0.0, "0 s", 1.0)],
)
async def test_it_says_for_how_long_and_looks_often_enough(
    after_s: float, said_so: str, every_s: float
) -> None:
    assert reason_for(after_s) == f"no sign of life for {said_so}"
    assert look_every_s(after_s) == every_s
