"""What the benchmarks make of their numbers: percentiles, differences, targets, and the papers' figures."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import harness, papers, tables
from bench.figures import difference, over_rounds, percentile, percentiles
from bench.pace import Offered, arrivals
from bench.report import page
from bench.results import key_of, read_results, write_results
from bench.sampling import stage_of
from bench.scenarios.soak import Look, growing
from bench.svg import bars, lines
from bench.targets import TARGETS
from bench.tour import STOPS

ROOT = Path(__file__).parents[2]


def result(scenario: str = "tell", *rounds: float, **changed: Any) -> dict[str, Any]:
    """One as `harness.Run.result` makes it, with these figures of its rounds."""
    figures = rounds or (100.0, 110.0, 120.0, 130.0)
    summary = {"median": figures[0], "min": min(figures), "max": max(figures), "runs": len(figures)}
    found = {
        "scenario": scenario,
        "what": "A scenario.",
        "unit": "tells",
        "options": harness.Options().described(),
        "loop": "asyncio",
        "compared": {"figure": "per_s", "better": "higher"},
        "figure": summary,
        "ceiling_figure": summary,
        "ratio_to_ceiling": summary | {"median": 0.5},
        "per_s": summary,
        "ceiling_per_s": summary,
        "cpu_us_per_operation": summary,
        "processes_cpu_us_per_operation": {"server": 12.0},
        "latency_us": percentiles(figures),
        "ceiling_latency_us": None,
        "lag_us": None,
        "more": {"sessions": 10, "told": "offered 50 k/s, reached 31 k/s"},
        "rounds": [{"figure": one, "ratio_to_ceiling": one / 200} for one in figures],
        "broken_off": None,
        "environment": harness.environment(),
    }
    return found | changed


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=40), st.floats(0.001, 1))
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(
    values: list[float], share: float
) -> None:
    found = percentile(sorted(values), share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6
    assert sum(value < found for value in values) <= share * len(values)


def test_percentiles_over_rounds_are_medians_and_the_greatest_maximum() -> None:
    rounds = [percentiles([one]) for one in (1.0, 2.0, 9.0)]
    found = over_rounds([*rounds, None])
    assert found is not None
    assert (found["p99"], found["max"]) == (2.0, 9.0)
    assert over_rounds([None]) is None


def test_rounds_that_do_not_overlap_show_a_difference() -> None:
    found = difference([100, 101, 102, 103, 104], [150, 151, 152, 153, 154])
    assert found.is_shown
    assert found.low < found.ratio < found.high
    assert found.ratio == pytest.approx(152 / 102)
    assert found.chance == pytest.approx(2 / 252)


def test_rounds_that_overlap_show_none() -> None:
    assert not difference([100, 120, 110, 130, 90], [105, 125, 95, 115, 135]).is_shown


def test_three_rounds_never_show_a_difference() -> None:
    assert not difference([1, 2, 3], [10, 20, 30]).is_shown


def test_many_rounds_are_judged_as_few_are() -> None:
    old, new = [100.0 + one for one in range(30)], [103.0 + one for one in range(30)]
    assert difference(old, new).chance > 0.05
    assert difference(old, [one + 60 for one in old]).is_shown


@given(st.integers(0, 5))
def test_arrivals_rise_and_keep_their_rate(seed: int) -> None:
    found = arrivals(10_000, 2.0, seed)
    assert found == sorted(found)
    assert found[-1] < 2.0
    assert 0.95 < len(found) / 20_000 < 1.05


def test_a_rate_beyond_the_machine_is_said_in_plain_words() -> None:
    offered = Offered(
        rate_per_s=50_000, answered=31_000, unsent=0, elapsed_s=1.0, latencies_us=[], late_us=[]
    )
    assert offered.told() == "offered 50 k/s, reached 31 k/s"
    assert not offered.kept_up


def test_a_rate_that_was_reached_is_not_remarked_upon() -> None:
    offered = Offered(rate_per_s=1_000, answered=2_000, unsent=0, elapsed_s=2.0, latencies_us=[], late_us=[])
    assert offered.told() is None


def test_a_comparison_says_what_got_better_what_worse_and_what_shows_nothing() -> None:
    old = [result("tell", 100, 101, 102, 103, 104), result("ask", 100, 120, 110, 130, 90), result("sse")]
    new = [
        result("tell", 150, 151, 152, 153, 154),
        result("ask", 105, 125, 95, 115, 135),
        result("crowd"),
    ]
    said = tables.comparison(old, new).splitlines()
    assert said[0].startswith("tell asyncio: per_s: 100 -> 150, x1.4")
    assert said[0].endswith(": better")
    assert said[2].endswith(": no difference shown")
    assert "crowd asyncio: only in the new file" in said
    assert "sse asyncio: only in the old file" in said
    assert tables.comparison(new[:1], old[:1]).splitlines()[0].endswith(": WORSE")


def test_where_less_is_better_a_rise_is_worse() -> None:
    lower = {"compared": {"figure": "p99_us", "better": "lower"}}
    old, new = result("crowd", 1, 2, 3, 4, 5, **lower), result("crowd", 6, 7, 8, 9, 10, **lower)
    assert tables.comparison([old], [new]).splitlines()[0].endswith(": WORSE")


def test_too_few_rounds_are_called_so() -> None:
    said = tables.comparison([result("tell", 1, 2)], [result("tell", 8, 9)])
    assert "no difference shown: 2 rounds are too few" in said


def test_a_comparison_never_mixes_other_options() -> None:
    other = result("tell", options=harness.Options(sessions=7).described())
    assert key_of(other) != key_of(result("tell"))
    assert "only in" in tables.comparison([result("tell")], [other])


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "one.json"
    write_results(path, [result()])
    assert read_results(path)[0]["rounds"] == result()["rounds"]
    assert [entry.name for entry in path.parent.iterdir()] == ["one.json"]


@pytest.mark.parametrize(
    ("content", "said"), [(None, "there is no"), ("{", "cannot be read"), ("[]", "is no result file")]
)
def test_what_is_no_result_file_is_told_with_what_to_give(
    tmp_path: Path, content: str | None, said: str
) -> None:
    path = tmp_path / "some.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=said):
        read_results(path)


def test_every_target_and_every_stop_of_the_tour_is_of_a_scenario_that_is_there() -> None:
    assert {target.scenario for target in TARGETS} <= set(harness.names())
    toured = {name for name, _ in STOPS}
    assert set(harness.names()) - toured == {"soak"}
    # What is measured by the tour is what the table of targets looks for.
    wanted = {(target.scenario, target.sessions) for target in TARGETS}
    missing = wanted - {(name, options.sessions) for name, options in STOPS}
    assert missing == {("crowd", None), ("crowd-passivated", None), ("activation", None)}


def test_a_target_is_met_missed_or_not_measured() -> None:
    rows = tables.targets_table([result("tell"), result("ask", ratio_to_ceiling={"median": 0.2})])
    verdicts = [row.split("|")[4].strip() for row in rows.splitlines()[2:]]
    assert verdicts[0] == "met"
    assert verdicts[2] == "missed"
    assert verdicts[3] == "not measured"


def test_a_line_says_figure_ceiling_ratio_and_what_the_machine_could_not_do() -> None:
    said = tables.line(result())
    for part in ("tell", "ceiling", "ratio 0.50", "p99", "server 12", "offered 50 k/s, reached 31 k/s"):
        assert part in said


def test_the_report_is_one_page_with_pictures_that_fetches_nothing() -> None:
    memory = {"more": {"sessions": 10, "bytes_a_session": 5, "active_bytes": 6, "passivated_bytes": 1}}
    profile = {
        "scenario": "ask",
        "profile": True,
        "stages": {"kernel": 1.0},
        "functions": {"<lambda> (a)": 0.5},
    }
    html = page([result(), result("durable-ask"), result("memory", **memory), profile])
    assert html.count("<svg") >= 5
    assert "&lt;lambda&gt;" in html
    assert "src=" not in html
    assert "href=" not in html


def test_a_picture_of_nothing_is_empty() -> None:
    assert bars({}) == ""
    assert lines({"none": []}, x="x", y="y") == ""


def test_a_line_of_one_point_is_drawn() -> None:
    assert "<circle" in lines({"one": [(10, 1_500)]}, x="x", y="y")


def test_code_is_charged_to_its_stage_wherever_the_checkout_lies() -> None:
    assert stage_of(str(ROOT / "actors/kernel/scheduler.py")) == "kernel: mailboxes, scheduler, wheel"
    assert stage_of("/x/site-packages/uvicorn/protocols/http/httptools_impl.py") == "uvicorn"
    assert stage_of("/usr/lib/python3.11/threading.py") is None


def looks(*resident_mib: int, descriptors: int = 10) -> list[Look]:
    return [
        Look(
            resident_bytes=mib << 20,
            descriptors=descriptors,
            lag_p99_us=500.0,
            p99_us=1_000.0,
            answered=10,
        )
        for mib in resident_mib
    ]


def test_a_soak_in_which_memory_rises_at_first_and_then_rests_is_fine() -> None:
    assert growing(looks(50, 80, 100, 101, 100, 102, 101, 100)) == []


def test_a_soak_in_which_memory_goes_on_rising_is_told() -> None:
    (said,) = growing(looks(50, 80, 100, 120, 140, 160, 180, 200))
    assert said.startswith("resident memory grew from")


def test_a_soak_that_leaks_descriptors_is_told() -> None:
    early, late = looks(100, 100, 100, 100), looks(100, 100, 100, 100, descriptors=100)
    assert growing([*early, *late]) == ["open descriptors grew from 10 to 100"]


def test_a_soak_of_few_stretches_says_nothing() -> None:
    assert growing(looks(1, 900)) == []


def test_the_papers_have_a_place_for_figures_and_keep_the_rest() -> None:
    for name in ("README.md", "docs/performance.md"):
        paper = (ROOT / name).read_text()
        there = paper.split(papers.BEGIN)[1].split(papers.END)[0]
        assert papers.replaced(paper, there, name) == paper


def test_the_readme_s_figures_are_of_the_form_that_the_command_writes() -> None:
    figures = (ROOT / "README.md").read_text().split(papers.BEGIN)[1].split(papers.END)[0]
    rows = [line for line in figures.splitlines() if line.startswith("|")][2:]
    known = {row.what: row for row in papers.README_ROWS}
    assert rows
    for row in rows:
        what, figure, ceiling, ratio, measured_by = (cell.strip() for cell in row.strip("|").split("|"))
        assert "/s" in figure
        assert ceiling.startswith(known[what].ceiling)
        assert float(ratio) > 0
        assert measured_by == f"`python -m bench run {known[what].scenario}`"


def test_a_paper_without_a_place_for_figures_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("no place\n")
    (tmp_path / "docs/performance.md").write_text(f"{papers.BEGIN}\n{papers.END}\n")
    with pytest.raises(ValueError, match=r"README.md has no place for figures"):
        papers.renew([result()], tmp_path)
    assert (tmp_path / "docs/performance.md").read_text() == f"{papers.BEGIN}\n{papers.END}\n"


def test_both_papers_are_renewed_from_results(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/performance.md"):
        (tmp_path / name).write_text(f"before\n{papers.BEGIN}\nold\n{papers.END}\nafter\n")
    papers.renew([result("tell", 1_520_000.0)], tmp_path)
    readme = (tmp_path / "README.md").read_text()
    assert "| tells to one actor | 1.52 M/s, p50" in readme
    assert readme.startswith("before\n")
    assert readme.endswith("after\n")
    assert "old" not in readme
    assert (
        "| tells to one actor, of a deque | >= 0.4 | 0.5 | met |"
        in (tmp_path / "docs/performance.md").read_text()
    )
