"""What `import sojourn` gives, and what it costs."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import sojourn

SOURCE = Path(sojourn.__file__)


def loaded_after(program: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after `program`."""
    program += "; import json, sys; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("name", sojourn.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(sojourn, name).__doc__


def test_a_name_that_is_not_public_is_missing() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sojourn.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    imported = {
        alias.name
        for node in ast.walk(ast.parse(SOURCE.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert imported == set(sojourn.__all__)
    assert set(sojourn.__all__) <= set(dir(sojourn))


def test_importing_the_package_imports_nothing_that_stands_behind_it() -> None:
    loaded = loaded_after("import sojourn") - loaded_after("import importlib")
    assert loaded == {"sojourn"}


def test_an_error_class_costs_no_web_framework_and_no_driver() -> None:
    loaded = loaded_after("from sojourn import SojournError, NoSuchSession")
    assert not loaded & {"starlette", "uvicorn", "sqlite3", "aiosqlite", "anyio", "msgspec"}
