"""How much work that can wait rests, on a virtual clock."""

import pytest
import trio
import trio.testing

from sojourn.runtime.resting import HEAD_START, REST_FACTOR, REST_S_MAX, Pace, Rest

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


async def test_work_that_is_ahead_of_what_fills_rests_and_otherwise_does_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    used = 0.0
    pace = Pace(lambda: used, passes=2)
    pace.start()
    pace.begin_pass(10)
    assert await rested_s(pace, 0.01) == pytest.approx(REST_FACTOR * 0.01)
    used = HEAD_START / 2
    assert await rested_s(pace, 0.01) == pytest.approx(REST_FACTOR / 2 * 0.01)
    used = HEAD_START
    assert await rested_s(pace, 0.01) == 0
    pace.done()  # a twentieth of all
    assert pace.lead == pytest.approx(0.05 / HEAD_START)
    pace.begin_pass(10)  # half of all is done
    assert pace.lead == 1
    used = HEAD_START + 0.5
    assert pace.lead == 0


async def test_no_rest_is_long(autojump_clock: trio.testing.MockClock) -> None:
    pace = Pace(lambda: 0.0, passes=2)
    pace.start()
    pace.begin_pass(10)
    assert await rested_s(pace, 10) == pytest.approx(REST_S_MAX)


async def test_work_that_takes_more_passes_than_it_should_does_not_rest(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pace = Pace(lambda: 0.0, passes=2)
    assert pace.lead == 0  # it has not begun
    pace.start()
    for expected in (1, 1, 0):
        pace.begin_pass(1)
        assert pace.lead == expected
        pace.done()
    pace.start()
    pace.begin_pass(1)
    assert pace.lead == 1
