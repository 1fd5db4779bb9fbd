"""Puts the pytest reporter into the command's environment without installing anything there.

A folder on `PYTHONPATH` holds the plugin and the metadata by which pytest finds it, as it finds an installed plugin.
That reaches any Python that the command starts, through `uv run --isolated`, tox or xdist too; where the variable is
dropped, nothing happens. (`PYTEST_ADDOPTS=-p ...` would end a suite whose `PYTHONPATH` is dropped.)
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

MODULE = "sojourn_pytest_reporter"
_IMPLEMENTATION = f"{MODULE}_implementation"

# An interpreter or a pytest that cannot read the plugin (Python 2.7, a broken environment) must not notice it.
_SHIM = f"""\
try:
    from {_IMPLEMENTATION} import pytest_configure
except Exception:
    pass
"""
_METADATA = "Metadata-Version: 2.1\nName: sojourn-pytest-reporter\nVersion: 1\n"
_ENTRY_POINTS = f"[pytest11]\nsojourn_reporter = {MODULE}\n"


def write_plugin(folder: Path) -> None:
    """Make `folder` and fill it. Raises OSError."""
    info = folder / f"{MODULE}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(_METADATA, "utf-8")
    (info / "entry_points.txt").write_text(_ENTRY_POINTS, "utf-8")
    (folder / f"{MODULE}.py").write_text(_SHIM, "utf-8")
    shutil.copyfile(reporter_file(), folder / f"{_IMPLEMENTATION}.py")


def reporter_file() -> Path:
    """The plugin's source, which this interpreter may be unable to import: pytest need not be installed here."""
    return Path(__file__).with_name("reporter.py")


def reporting_environment(
    environment: Mapping[str, str],
    *,
    folder: Path,
    socket_path: Path,
    spill_path: Path,
    recorded_path: Path | None = None,
) -> dict[str, str]:
    """The environment for the command: `folder` comes first on `PYTHONPATH`, what stood there stays behind it.

    `recorded_path` is a JSON list of the case ids that need not run again, or None.
    """
    before = environment.get("PYTHONPATH")
    made = {
        **{name: value for name, value in environment.items() if name != "SOJOURN_REPORT_RECORDED"},
        "PYTHONPATH": os.pathsep.join([str(folder), before] if before else [str(folder)]),
        "SOJOURN_REPORT_SOCKET": str(socket_path),
        "SOJOURN_REPORT_SPILL": str(spill_path),
    }
    if recorded_path is not None:
        made["SOJOURN_REPORT_RECORDED"] = str(recorded_path)
    return made
