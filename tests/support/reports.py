"""A recorder's listener for pytest processes, and pytest runs that report to it."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import anyio
import anyio.to_thread
from attrs import define, field

from sojourn.record.inject import reporting_environment, write_plugin
from sojourn.record.listener import ReportListener

SESSION = "sess_" + "2" * 32


@define(eq=False)
class Reports:
    """What pytest processes reported. While `full` is true the recorder cannot take anything."""

    folder: Path
    commands: list[dict[str, Any]] = field(factory=list)
    warnings: list[str] = field(factory=list)
    full: bool = False

    @property
    def socket_path(self) -> Path:
        return self.folder / "reporter.sock"

    @property
    def spill_path(self) -> Path:
        return self.folder / "reporter.spill"

    @property
    def environment(self) -> dict[str, str]:
        # Neither our own pytest's settings nor a recording around it may show in the pytest that is tested.
        own = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "SOJOURN_"))
        }
        return reporting_environment(
            own, folder=self.folder / "inject", socket_path=self.socket_path, spill_path=self.spill_path
        )

    def accept(self, lines: list[bytes], commands: list[dict[str, Any]]) -> None:
        if self.full:
            raise OSError("no space left")
        self.commands += commands

    @property
    def results(self) -> list[dict[str, Any]]:
        return [command for command in self.commands if command["type"] == "result.record"]

    @property
    def outcomes(self) -> dict[str, str]:
        """By case id; fails where one was reported twice."""
        pairs = [(result["case_id"], result["outcome"]) for result in self.results]
        assert len(dict(pairs)) == len(pairs), "a case was reported twice"
        return dict(pairs)

    @property
    def progress(self) -> list[tuple[int, int]]:
        return [(c["done"], c["total"]) for c in self.commands if c["type"] == "progress.report"]

    def spilled(self) -> list[dict[str, Any]]:
        """The lines of the spill file, its header first."""
        return [json.loads(line) for line in self.spill_path.read_text().splitlines()]


def prepared(folder: Path) -> Reports:
    """Reports for which nobody listens yet."""
    write_plugin(folder / "inject")
    return Reports(folder)


@asynccontextmanager
async def listening(folder: Path) -> AsyncIterator[Reports]:
    """A listener as `record` has it."""
    reports = prepared(folder)
    async with anyio.create_task_group() as tasks:
        listener = await anyio.create_unix_listener(reports.socket_path)
        tasks.start_soon(ReportListener(SESSION, reports.accept, reports.warnings.append).serve, listener)
        yield reports
        tasks.cancel_scope.cancel()


async def run_pytest(
    reports: Reports, tests: Path, *arguments: str, python: Sequence[str] = (sys.executable,)
) -> "subprocess.CompletedProcess[str]":
    """A pytest process of its own, reporting."""
    # The plugins that this project's environment has take a second to load, and none of these tests needs them.
    unneeded = [
        f"no:{name}"
        for name in ("cacheprovider", "hypothesispytest", "trio", "pytest_trio", "anyio", "timeout")
    ]
    options = [option for name in unneeded for option in ("-p", name)]
    command = [*python, "-m", "pytest", "-q", *options, *arguments]
    return await anyio.to_thread.run_sync(
        lambda: subprocess.run(
            command,
            cwd=tests,
            env=reports.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    )


def junit_cases(path: Path) -> Counter[tuple[str, str, str]]:
    """(classname, name, outcome) of a JUnit file. A failure with a teardown error is two elements there, and one here."""
    outcomes: dict[tuple[str, str], list[str]] = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        found = "passed"
        for child in case:
            if child.tag in ("failure", "error"):
                found = {"failure": "failed", "error": "error"}[child.tag]
            elif child.tag == "skipped":
                found = "xfailed" if child.get("type") == "pytest.xfail" else "skipped"
        key = (case.get("classname", ""), case.get("name", ""))
        before = outcomes.setdefault(key, [])
        if before and before[-1] == "failed" and found == "error":
            before[-1] = found
        else:
            before.append(found)
    return Counter((*key, outcome) for key, found_all in outcomes.items() for outcome in found_all)


def recorded_cases(
    results: list[dict[str, Any]], junit: Counter[tuple[str, str, str]]
) -> Counter[tuple[str, str, str]]:
    """What was recorded, in JUnit's terms: its classnames are ours without the packages above pytest's root folder."""
    known = {classname for classname, _, _ in junit} | {name for classname, name, _ in junit if not classname}
    cases: Counter[tuple[str, str, str]] = Counter()
    for result in results:
        module, separator, name = re.sub(r"#\d+$", "", result["case_id"]).partition("::")
        parts = module.split(".")
        suffixes = [".".join(parts[start:]) for start in range(len(parts))]
        classname = next((suffix for suffix in suffixes if suffix in known), module)
        outcome = "passed" if result["outcome"] == "xpassed" else result["outcome"]
        cases[(classname, name, outcome) if separator else ("", classname, outcome)] += 1
    return cases
