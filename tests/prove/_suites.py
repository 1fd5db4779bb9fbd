"""Real suites that none of us wrote, each in an environment of its own, from wheels."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from attrs import frozen

PYTEST = "9.2.0"
UV = str(Path(sys.executable).with_name("uv"))
SOJOURN = str(Path(sys.executable).with_name("sojourn"))


@frozen
class Suite:
    """A package's own tests."""

    package: str
    version: str
    modules: tuple[str, ...]
    needs: tuple[str, ...] = ()

    def command(self, *arguments: str, xdist: bool = False) -> list[str]:
        extra = [
            word for need in (*self.needs, *(["pytest-xdist"] if xdist else [])) for word in ("--with", need)
        ]
        workers = ["-n", "2"] if xdist else []
        return [
            UV, "run", "--no-project", "--isolated", "--quiet", "--with", f"{self.package}=={self.version}",
            "--with", f"pytest=={PYTEST}", *extra,
            "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *workers, *arguments, "--pyargs", *self.modules,
        ]  # fmt: skip


NETWORKX = ("networkx.algorithms.shortest_paths", "networkx.algorithms.flow", "networkx.classes")
NETWORKX_NEW = Suite("networkx", "3.6.1", NETWORKX)
NETWORKX_OLD = Suite("networkx", "2.7.1", NETWORKX)
SYMPY = Suite("sympy", "1.14.0", ("sympy.sets", "sympy.logic"), ("hypothesis",))


def clean_environment() -> dict[str, str]:
    """Ours, without what would show in the recorded suite."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "SOJOURN_"))}


def record(folder: Path, name: str, command: list[str], *, check: bool = True) -> dict[str, Any]:
    """Record a command into `folder/data`; what `--json` wrote."""
    empty = folder / f"run-{name}"
    empty.mkdir()
    out = folder / f"{name}.json"
    done = subprocess.run(
        [SOJOURN, "record", "--data", str(folder / "data"), "--plan", name.split("-")[0], "--json", str(out), "--", *command],
        cwd=empty, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if check and done.returncode not in (0, 1):
        raise AssertionError(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(out.read_text())
    return found
