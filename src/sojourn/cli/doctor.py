"""`sojourn doctor`: what is wrong, and what to do about it."""

import sys
import time
from pathlib import Path
from typing import Annotated

from attrs import asdict
from cyclopts import Parameter
from rich.text import Text

from ..runtime.telemetry import configure_logging
from .checks import examine
from .findings import Finding
from .screen import Screen, run
from .text import one_line

_STYLES = {"ok": "green", "warning": "yellow", "problem": "red"}
_CHARACTERS_MAX = 2_000
PROGRESS_EVERY_S = 0.2


def doctor(
    *,
    data: Path | None = None,
    deep: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
    config: Path | None = None,
) -> int:
    """Look for what is wrong, and say what to do. It takes no lock and changes nothing. Exit code 0, or 1 for a problem.

    Args:
        data: the data folder; unless given, SOJOURN_DATA, else the user's own.
        deep: read everything that is stored, the archive too, and check it against its checksums.
        json: one JSON document, {"ok": ..., "findings": [{"check", "detail", "level", "remedy"}, ...]}.
        config: the settings file; unless given, SOJOURN_CONFIG, else sojourn.toml here, else the user's.
    """

    async def body(screen: Screen) -> int:
        # What the reader would log of damage is among the findings.
        configure_logging(level="critical")
        findings = []
        progress = _Progress()
        async for finding in examine(config, data, progress=progress.told if deep else None):
            findings.append(finding)
            progress.clear()
            if not json:
                _print(screen, finding)
                screen.flush()
        progress.clear()
        healthy = all(finding.level != "problem" for finding in findings)
        if json:
            screen.json({"ok": healthy, "findings": [asdict(finding) for finding in findings]})
        return 0 if healthy else 1

    return run(body)


class _Progress:
    """A line on standard error, where that is a terminal: how much was read."""

    def __init__(self) -> None:
        self._next_at = 0.0
        self._shown = False

    def told(self, count: int) -> None:
        now = time.monotonic()
        if sys.stderr.isatty() and now >= self._next_at:
            self._next_at = now + PROGRESS_EVERY_S
            self._shown = True
            print(f"\r{count:,} read", end="\x1b[K", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._shown:
            self._shown = False
            print("\r", end="\x1b[K", file=sys.stderr, flush=True)


def _print(screen: Screen, finding: Finding) -> None:
    level = Text(f"{finding.level:<8}", style=_STYLES[finding.level])
    screen.line(level.append(f" {finding.check:<14} {one_line(finding.detail, _CHARACTERS_MAX)}", style=""))
    if finding.remedy is not None:
        screen.line(f"{'':<23} -> {one_line(finding.remedy, _CHARACTERS_MAX)}")
