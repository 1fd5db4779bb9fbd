"""How much work that can wait rests, on a virtual clock."""

import pytest
import trio
import trio.testing

from sojourn.runtime.resting import AT_ONCE, HEAD_START, REST_FACTOR, REST_S_MAX, Pace, Rest

pytestmark = pytest.mark.trio


async def rested_s(rest: Rest | Pace, work_s: float) -> float:
    """How long it rests after so much work."""
    await trio.sleep(work_s)
    began = trio.current_time()
    await rest()
    return trio.current_time() - began


async def test_a_rest_is_by_the_length_of_the_slice_before_it(autojump_clock: trio.testing.MockClock) -> None:
    rest = Rest()
    assert [await rested_s(rest, work_s) for work_s in (0.01, 0.001)] == pytest.approx(
        [REST_FACTOR * 0.01, REST_FACTOR * 0.001]
    )


async def test_work_that_is_ahead_of_what_fills_rests_and_otherwise_more_is_done_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    used = 0.0
    pace = Pace(lambda: used)
    assert pace.at_once == AT_ONCE  # there is nothing to do
    pace.begin(20)
    for share, factor, at_once in (
        (0.0, 1.0, 1),
        (HEAD_START / 4, 0.5, 1),
        (HEAD_START / 2, 0.0, 1),
        (HEAD_START * 3 / 4, 0.0, AT_ONCE // 2),
    ):
        used = share
        assert await rested_s(pace, 0.01) == pytest.approx(factor * REST_FACTOR * 0.01)
        assert pace.at_once == at_once
    pace.done(10)
    used = 0.5
    assert await rested_s(pace, 0.01) == pytest.approx(REST_FACTOR * 0.01)
    used = 0.5 + HEAD_START
    assert await rested_s(pace, 0.01) == 0
    assert pace.at_once == AT_ONCE


async def test_a_lead_that_was_lost_does_not_come_back_before_the_work_begins_anew() -> None:
    used = HEAD_START
    pace = Pace(lambda: used)
    pace.begin(10)
    assert pace.at_once == AT_ONCE
    used = 0.0
    pace.done(9)
    assert pace.at_once == AT_ONCE
    pace.begin(10)
    assert pace.at_once == 1


async def test_work_that_becomes_more_has_less_of_a_lead() -> None:
    pace = Pace(lambda: 0.5)
    pace.begin(2)
    pace.done()
    assert pace.at_once == 1
    pace.more(1)
    assert pace.at_once == 3  # a sixth behind, of a quarter


async def test_no_rest_is_long(autojump_clock: trio.testing.MockClock) -> None:
    pace = Pace(lambda: 0.0)
    pace.begin(10)
    assert await rested_s(pace, 10) == pytest.approx(REST_S_MAX)


async def test_what_is_done_of_a_step_counts_until_the_step_is_over() -> None:
    pace = Pace(lambda: 0.5)
    pace.begin(4)
    pace.done()
    assert pace.at_once == AT_ONCE
    pace = Pace(lambda: 0.5)
    pace.begin(4)
    pace.done()
    rest = pace.now(2)
    await rest(0.5)
    assert rest.at_once == 1
    pace.done(2)
    await pace()
    assert pace.at_once == 1
