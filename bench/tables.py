"""Results in words: a line a scenario, tables in Markdown."""

from collections.abc import Sequence
from typing import Any

from .figures import difference
from .results import key_of
from .targets import TARGETS

# Below this many rounds on either side, not even rounds without any overlap show a difference.
ROUNDS_MIN = 4
UNITS = {"per_s": "/s", "p99_us": " us p99", "cpu_us": " us CPU", "elapsed_s": " s"}
# Shown elsewhere, or too long for a line.
_NOT_ON_THE_LINE = ("clients", "server_rss_bytes")


def number(value: float) -> str:
    """Three or four digits that mean something."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:,.3g}"


def number_short(value: float) -> str:
    """1,520,000 as 1.52 M."""
    for size, letter in ((1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def line(result: dict[str, Any]) -> str:
    """One result, for a terminal."""
    figure, ceiling, ratio = result["figure"], result["ceiling_figure"], result["ratio_to_ceiling"]
    name = result["compared"]["figure"]
    unit = f" {result['unit']}/s" if name == "per_s" else UNITS.get(name, f" {name}")
    said = (
        f"{result['scenario']:16} {number(figure['median']):>9}{unit}   ceiling {number(ceiling['median'])}"
        f"   ratio {ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"
    )
    if name != "per_s":
        said += f", lower is better   {number(result['per_s']['median'])} {result['unit']}/s"
    if latency := result["latency_us"]:
        said += f"   p50 {number(latency['p50'])} us  p99 {number(latency['p99'])} us"
    if lag := result["lag_us"]:
        said += f"   lag p99 {number(lag['p99'])} us"
    for process, cpu_us in result["processes_cpu_us_per_operation"].items():
        said += f"   {process} {number(cpu_us)} us CPU"
    for key, value in result["more"].items():
        if key == "told":
            said += f"   {value}"
        elif key not in _NOT_ON_THE_LINE and isinstance(value, int | float):
            said += f"   {key} {number(value)}"
    return said + (f"   broken off: {result['broken_off']}" if result["broken_off"] else "")


def comparison(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> str:
    """Both files' results with the same scenario, loop and options: the figure, and its ratio to the ceiling, which says
    more where the machine was busier in one of them."""
    before = {key_of(result): result for result in old}
    rows = []
    for result in new:
        key = key_of(result)
        there = before.pop(key, None)
        if there is not None:
            rows += [_compared(key, there, result, what) for what in ("figure", "ratio_to_ceiling")]
        else:
            rows.append(f"{key}: only in the new file")
    return "\n".join([*rows, *[f"{key}: only in the old file" for key in before]]) or "nothing to compare"


def _compared(key: str, old: dict[str, Any], new: dict[str, Any], what: str) -> str:
    before = [one[what] for one in old["rounds"]]
    after = [one[what] for one in new["rounds"]]
    name = new["compared"]["figure"] if what == "figure" else "of the ceiling"
    if min(*before, *after) <= 0:
        return f"{key}: {name}: a round of 0, which has no ratio"
    found = difference(before, after)
    said = (
        f"{key}: {name}: {number(old[what]['median'])} -> {number(new[what]['median'])}, "
        f"x{found.ratio:.3f} (95 %: {found.low:.3f} to {found.high:.3f}), p = {found.chance:.2g}: "
    )
    if min(len(before), len(after)) < ROUNDS_MIN:
        fewest = min(len(before), len(after))
        return f"{said}no difference shown: {fewest} rounds are too few to show one; run {ROUNDS_MIN} or more"
    if not found.is_shown:
        return f"{said}no difference shown"
    better = (found.ratio > 1) != (new["compared"]["better"] == "lower")
    return f"{said}{'better' if better else 'WORSE'}"


def targets_table(results: Sequence[dict[str, Any]]) -> str:
    """Every target, and how the results stand to it, in Markdown."""
    rows = ["| target | bound | found | | measured by `python -m bench` |", "|---|---|---|---|---|"]
    for target in TARGETS:
        bound = f"{'>=' if target.at_least else '<='} {number(target.bound)} {target.unit}".strip()
        result = target.of(results)
        if result is None:
            found, verdict = "", "not measured"
        else:
            found = f"{number(target.found(result))} {target.unit}".strip()
            verdict = "met" if target.is_met(result) else "missed"
        rows.append(f"| {target.what} | {bound} | {found} | {verdict} | `{target.command}` |")
    return "\n".join(rows) + "\n"


def profile_table(found: dict[str, Any]) -> str:
    """Where the CPU went."""
    rows = [f"{found['scenario']}: {found['cpu_s']:.2f} s of CPU, {found['samples']:,} samples"]
    rows += [f"  {share:6.1%}  {stage}" for stage, share in found["stages"].items()]
    rows.append("  by function, without what it calls:")
    rows += [f"  {share:6.1%}  {function}" for function, share in found["functions"].items()]
    return "\n".join(rows)


def peers_table(results: Sequence[dict[str, Any]]) -> str:
    """Each peer's jobs beside ours, of the same rounds."""
    rows = [f"{'peer':22} {'job':14} {'peer/s':>10} {'ours/s':>10}   ours / peer"]
    for result in results:
        if "skipped" in result:
            rows.append(f"{result['peer']:22} skipped: {result['skipped']}")
            continue
        for job, found in result["jobs"].items():
            ratio = found["ratio"]
            rows.append(
                f"{result['peer']:22} {job:14} {number(found['theirs']['median']):>10} "
                f"{number(found['ours']['median']):>10}   {ratio['median']:.1f} ({ratio['min']:.1f}-{ratio['max']:.1f})"
            )
    return "\n".join(rows)
