"""The command line as a whole: its commands, and what starting one costs."""

import subprocess
import sys
from importlib.metadata import version

import pytest

from sojourn.cli import app


def test_every_command_can_be_loaded_and_has_help() -> None:
    names = (
        "record",
        "serve",
        "ls",
        "show",
        "tail",
        "compare",
        "top",
        "export",
        "accept-loss",
        "quarantine",
        "rebuild-catalog",
        "settings",
        "doctor",
    )
    assert {name for name in app if not name.startswith("-")} == set(names)
    for name in names:
        assert app[name].help


def test_no_command_is_imported_before_it_runs() -> None:
    program = (
        "import sys, sojourn.cli; print(*sorted(name for name in sys.modules if name.startswith('sojourn')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["sojourn", "sojourn.cli"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["--version"], 0), (["nonsense"], 2), (["serve", "--nonsense"], 2)],
)
def test_the_module_runs_as_the_command_does(arguments: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sojourn", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    if arguments == ["--version"]:
        assert done.stdout.strip() == version("sojourn")
