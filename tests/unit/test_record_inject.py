"""The plugin folder, and the environment by which pytest finds it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from sojourn.record.inject import MODULE, reporter_file, reporting_environment, write_plugin


def environment(folder: Path, **given: str) -> dict[str, str]:
    return reporting_environment(
        given, folder=folder, socket_path=folder / "socket", spill_path=folder / "spill"
    )


def test_the_folder_comes_first_and_what_was_on_the_path_stays(tmp_path: Path) -> None:
    made = environment(tmp_path, PYTHONPATH="/a:/b", HOME="/home/ann")
    assert made["PYTHONPATH"] == f"{tmp_path}:/a:/b"
    assert made["HOME"] == "/home/ann"


@pytest.mark.parametrize("given", [{}, {"PYTHONPATH": ""}])
def test_an_empty_path_gets_no_empty_entry_which_would_be_the_working_folder(
    tmp_path: Path, given: dict[str, str]
) -> None:
    assert environment(tmp_path, **given)["PYTHONPATH"] == str(tmp_path)


def test_an_interpreter_finds_the_plugin_as_an_installed_one(tmp_path: Path) -> None:
    write_plugin(tmp_path / "inject")
    script = "import importlib.metadata as m; print([e.value for e in m.entry_points(group='pytest11')])"
    found = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(tmp_path / "inject"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert MODULE in found.stdout


def test_an_interpreter_that_cannot_read_the_plugin_does_not_notice_it(tmp_path: Path) -> None:
    write_plugin(tmp_path / "inject")
    (tmp_path / "inject" / f"{MODULE}_implementation.py").write_text("this is no Python")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import {MODULE}"],
        env=environment(tmp_path / "inject"),
        check=False,
    )
    assert done.returncode == 0


def test_the_reporter_is_python_3_8_and_imports_the_standard_library_and_pytest_only() -> None:
    tree = ast.parse(reporter_file().read_text(), feature_version=(3, 8))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        )
    }
    assert imported - {"pytest"} <= sys.stdlib_module_names
