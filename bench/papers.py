"""The figures in the README and in docs/performance.md, written anew from results: what stands between two marks in each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from . import tables
from .environment import ROOT

BEGIN = "<!-- figures: written by `python -m bench readme` -->"
END = "<!-- end of figures -->"


@frozen(kw_only=True)
class Row:
    """A line of the README's table. `told` puts a result into words: what was reached, and the ceiling."""

    what: str
    scenario: str
    sessions: int | None = None
    ceiling: str


README_ROWS = (
    Row(what="tells to one actor", scenario="tell", ceiling="a bare deque"),
    Row(what="asks answered in memory, 100 clients", scenario="ask", ceiling="deque and futures"),
    Row(what="durable asks, 256 sessions", scenario="durable-ask", ceiling="journal without kernel"),
    Row(
        what="whole test runs, 1,000 live sessions",
        scenario="mixed",
        ceiling="skeleton and bare script call",
    ),
    Row(
        what="durable commands over HTTP, 64 clients", scenario="http-single", ceiling="a bare ASGI callable"
    ),
    Row(what="live streams, 1,000 readers", scenario="sse", ceiling="a bare fan-out"),
)


def renew(results: Sequence[dict[str, Any]], root: Path = ROOT) -> list[str]:
    """Write both papers' figures anew; returns their names.

    Raises:
        ValueError: a paper has no place for them, or none of the rows was measured. Nothing is changed.
    """
    rows = readme_rows(results)
    if not rows:
        raise ValueError("the results hold none of the README's rows; make them: python -m bench tour")
    new = {
        "README.md": replaced((root / "README.md").read_text(), rows, "README.md"),
        "docs/performance.md": replaced(
            (root / "docs/performance.md").read_text(),
            said_where(results) + "\n\n" + tables.targets_table(results),
            "docs/performance.md",
        ),
    }
    for name, text in new.items():
        (root / name).write_text(text)
    return list(new)


def replaced(paper: str, figures: str, name: str) -> str:
    """The paper with other figures between the marks. Raises ValueError where they do not stand there once each."""
    if paper.count(BEGIN) != 1 or paper.count(END) != 1 or paper.index(BEGIN) > paper.index(END):
        raise ValueError(f"{name} has no place for figures; put them between {BEGIN} and {END}")
    head, rest = paper.split(BEGIN)
    return f"{head}{BEGIN}\n{figures.strip()}\n{END}{rest.split(END)[1]}"


def readme_rows(results: Sequence[dict[str, Any]]) -> str:
    """The table; empty where none of its rows was measured. A row that was not is left out."""
    rows = []
    for row in README_ROWS:
        fitting = [
            one
            for one in results
            if one["scenario"] == row.scenario
            and one["options"]["sessions"] == row.sessions
            and one["options"]["rate_per_s"] is None
        ]
        if fitting:
            rows.append(_row(row, fitting[-1]))
    if not rows:
        return ""
    head = "| what | figure | ceiling in the same run | ratio | measured by |\n|---|---|---|---|---|"
    return "\n".join([said_where(results), "", head, *rows])


def _row(row: Row, result: dict[str, Any]) -> str:
    figure = f"{tables.number_short(result['per_s']['median'])}/s"
    if latency := result["latency_us"]:
        p50, p99 = (tables.number(latency[point] / 1000) for point in ("p50", "p99"))
        figure += f", p50 {p50} ms, p99 {p99} ms"
    ceiling = f"{row.ceiling}: {tables.number_short(result['ceiling_per_s']['median'])}/s"
    ratio = f"{result['ratio_to_ceiling']['median']:.2f}"
    return f"| {row.what} | {figure} | {ceiling} | {ratio} | `python -m bench run {row.scenario}` |"


def said_where(results: Sequence[dict[str, Any]]) -> str:
    """Machine, versions, commit and day, in a sentence."""
    there, loop = results[-1]["environment"], results[-1]["loop"]
    return (
        f"{there['cores']} cores of {there['processor'] or there['machine']}, Python {there['python']}, {loop}, "
        f"commit {there['commit']}, {there['at'][:10]}, at a load of {there['load_1min']:.1f}; medians of the rounds."
    )
