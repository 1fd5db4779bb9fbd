"""One thing that `sojourn doctor` found, and how it is told."""

from pathlib import Path
from typing import Literal

from attrs import frozen

NAMED_MAX = 5


@frozen
class Finding:
    """What was found. A warning goes on working; a problem does not, or costs data. `remedy` is for both."""

    check: str
    level: Literal["ok", "warning", "problem"]
    detail: str
    remedy: str | None = None


def ok(check: str, detail: str) -> Finding:
    return Finding(check, "ok", detail)


def warning(check: str, detail: str, remedy: str) -> Finding:
    return Finding(check, "warning", detail, remedy)


def problem(check: str, detail: str, remedy: str) -> Finding:
    return Finding(check, "problem", detail, remedy)


def named(names: list[str]) -> str:
    """The first few of them, and how many more there are."""
    more = f" and {len(names) - NAMED_MAX:,} more" if len(names) > NAMED_MAX else ""
    return (", ".join(names[:NAMED_MAX]) or "none") + more


def nearest_folder(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
