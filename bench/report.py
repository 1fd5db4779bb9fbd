"""One HTML page of results: pictures, the targets, and every result in words."""

from collections.abc import Sequence
from html import escape
from typing import Any

from . import tables
from .results import key_of
from .svg import Points, bars, lines
from .targets import TARGETS

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
svg { font-size: 11px; max-width: 100%; height: auto } .grid { stroke: #ddd }
table { border-collapse: collapse; font-size: 13px } td, th { padding: 3px 10px; border-bottom: 1px solid #ddd;
text-align: left } .missed { color: #b30000; font-weight: bold } .legend span { margin-right: 1.2em }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .3em } code { font-size: 12px }
"""
ORDER = ("p50", "p90", "p99", "p99.9", "max")


def page(results: Sequence[dict[str, Any]]) -> str:
    """The page, of results as `run`, `tour`, `profile` and `peers` write them."""
    measured = [result for result in results if "ratio_to_ceiling" in result]
    profiles = [result for result in results if result.get("profile")]
    sections = [
        ("Ratio to the ceiling of the same run", _ratios(measured)),
        ("Targets", _targets(measured)),
        ("Latency, by percentile", _latencies(measured)),
        ("Throughput against concurrency: durable asks, one client a session", _concurrency(measured)),
        ("Memory against sessions", _memory(measured)),
        *[(f"Where the CPU goes: {one['scenario']}", _stages(one)) for one in profiles],
        ("Every result", _all(measured)),
    ]
    body = "".join(f"<h2>{escape(title)}</h2>{content}" for title, content in sections if content)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Sojourn, measured</title>'
        f"<style>{STYLE}</style><h1>Sojourn, measured</h1>{_where(results)}{body}</html>\n"
    )


def _where(results: Sequence[dict[str, Any]]) -> str:
    there = next((result["environment"] for result in results if "environment" in result), None)
    if there is None:
        return ""
    packages = ", ".join(f"{name} {version}" for name, version in there["packages"].items())
    said = (
        f"{there['processor'] or there['machine']}, {there['cores']} cores, load {there['load_1min']:.2f}; "
        f"Python {there['python']}, SQLite {there['sqlite']}, {packages}; commit {there['commit']}, {there['at']}"
    )
    return f"<p>{escape(said)}. Ratios travel, absolute figures do not.</p>"


def _ratios(results: Sequence[dict[str, Any]]) -> str:
    higher = {
        key_of(one): one["ratio_to_ceiling"]["median"]
        for one in results
        if one["compared"]["better"] == "higher"
    }
    lower = {
        f"{key_of(one)} ({one['compared']['figure']})": one["ratio_to_ceiling"]["median"]
        for one in results
        if one["compared"]["better"] == "lower"
    }
    found = bars(higher, most=1.0)
    return found + ("<p>Where less is better:</p>" + bars(lower) if lower else "")


def _targets(results: Sequence[dict[str, Any]]) -> str:
    rows = ""
    for target in TARGETS:
        result = target.of(results)
        bound = f"{'≥' if target.at_least else '≤'} {tables.number(target.bound)} {target.unit}"
        if result is None:
            found, verdict = "", "not measured"
        else:
            found = f"{tables.number(target.found(result))} {target.unit}"
            verdict = "met" if target.is_met(result) else "missed"
        cells = (target.what, bound, found)
        rows += f"<tr>{''.join(f'<td>{escape(cell)}' for cell in cells)}<td class='{verdict}'>{verdict}</tr>"
    return f"<table><tr><th>target<th>bound<th>found<th></tr>{rows}</table>"


def _latencies(results: Sequence[dict[str, Any]]) -> str:
    # A percentile's distance from the end, so that each further nine is as far as the one before.
    places = {"p50": 2.0, "p90": 10.0, "p99": 100.0, "p99.9": 1_000.0}
    series = {
        key_of(one): [(places[name], one["latency_us"][name] / 1000) for name in places]
        for one in results
        if one["latency_us"] and one["scenario"] not in ("recovery", "soak")
    }
    return lines(series, x="one in so many is slower (2: p50, 10: p90, 100: p99)", y="ms")


def _concurrency(results: Sequence[dict[str, Any]]) -> str:
    # Without the option it is the scenario's own default.
    ours: list[tuple[float, float]] = []
    ceiling: list[tuple[float, float]] = []
    for one in results:
        if one["scenario"] == "durable-ask" and one["options"]["ack"] == "durable":
            sessions = float(one["options"]["sessions"] or 256)
            ours.append((sessions, one["per_s"]["median"]))
            ceiling.append((sessions, one["ceiling_per_s"]["median"]))
    found: dict[str, Points] = {"durable asks": ours, "skeleton": ceiling}
    return lines(found, x="sessions, each with one ask under way", y="asks/s") if ours else ""


def _memory(results: Sequence[dict[str, Any]]) -> str:
    names = {
        "bytes_a_session": "at rest",
        "active_bytes": "with an ask under way",
        "passivated_bytes": "out of memory",
    }
    series: dict[str, Points] = {
        said: [
            (one["more"]["sessions"], one["more"][name] * one["more"]["sessions"] / 1e6)
            for one in results
            if one["scenario"] == "memory" and one["more"][name] > 0
        ]
        for name, said in names.items()
    }
    return lines(series, x="live sessions of 20 events", y="MB")


def _stages(profile: dict[str, Any]) -> str:
    stages, functions = (_largest_first(profile[of]) for of in ("stages", "functions"))
    return bars(stages, unit=" %", most=100) + "<p>By function:</p>" + bars(functions, unit=" %")


def _largest_first(shares: dict[str, float]) -> dict[str, float]:
    return {name: 100 * share for name, share in sorted(shares.items(), key=lambda item: -item[1])}


def _all(results: Sequence[dict[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td><b>{escape(key_of(one))}</b><br>{escape(one['what'])}<br><code>{escape(tables.line(one))}</code>"
        f"<br>latency {_percentiles(one['latency_us'])}; event loop late by {_percentiles(one['lag_us'])}</tr>"
        for one in results
    )
    return f"<table>{rows}</table>"


def _percentiles(found: dict[str, float] | None) -> str:
    if not found:
        return "not measured"
    return ", ".join(f"{name} {found[name] / 1000:,.3g} ms" for name in ORDER)
