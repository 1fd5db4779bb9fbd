"""The floors: who may import whom, and which libraries stand where. ARCHITECTURE.md states them; this walks the imports."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = ("actors", "runtime", "http", "src/sojourn")
LINKS = {"actors", "runtime", "http"}
MAY_IMPORT = {
    "actors": set[str](),
    "runtime": {"actors"},
    "http": {"actors", "runtime"},
    "src/sojourn": {"actors", "runtime", "http"},
}
DRIVERS = {"redis", "aiosqlite", "aiobotocore", "sqlite3", "botocore"}


def modules(folder: str) -> list[Path]:
    return [
        path
        for path in (ROOT / folder).rglob("*.py")
        if not (folder == "src/sojourn" and path.relative_to(ROOT / folder).parts[0] in LINKS)
    ]


def imports(path: Path, floor: str) -> Iterator[str]:
    """Every imported module, absolute: `sojourn.actors.ports`, `anyio`."""
    inside = path.relative_to(ROOT / floor).with_suffix("")
    package = ["sojourn", *([floor] if floor in LINKS else []), *inside.parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])])


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_imports_only_from_floors_below_it(floor: str) -> None:
    found = []
    for path in modules(floor):
        for name in imports(path, floor):
            parts = name.split(".")
            if parts[0] == "sojourn" and len(parts) > 1 and parts[1] in LINKS - {floor}:
                if parts[1] not in MAY_IMPORT[floor]:
                    found.append(f"{path.relative_to(ROOT)} imports {name}")
            elif parts[0] == "sojourn" and floor != "src/sojourn" and parts[1:2] != [floor]:
                found.append(f"{path.relative_to(ROOT)} imports {name} of the front door")
    assert found == []


@pytest.mark.parametrize("floor", FLOORS)
def test_libraries_stand_where_they_belong(floor: str) -> None:
    found = []
    for path in modules(floor):
        where = path.relative_to(ROOT).as_posix()
        for name in imports(path, floor):
            library = name.split(".")[0]
            if (
                (library in DRIVERS and not where.startswith("runtime/stores/"))
                or (library in {"starlette", "uvicorn"} and floor not in {"http", "src/sojourn"})
                or (library == "cattrs" and not path.name.endswith(("codec.py", "wire.py", "schema.py")))
                or (library in {"cyclopts", "rich", "httpx2", "psutil"} and floor != "src/sojourn")
                or (
                    library in {"socket", "pathlib", "os", "io", "tempfile", "subprocess"}
                    and floor == "actors"
                )
            ):
                found.append(f"{where} imports {name}")
    assert found == []


def test_the_pure_core_needs_only_the_standard_library_and_attrs_and_reads_no_clock() -> None:
    for path in (ROOT / "actors").rglob("core.py"):
        libraries = {name.split(".")[0] for name in imports(path, "actors")} - {"sojourn"}
        assert libraries <= (sys.stdlib_module_names | {"attrs"}) - {
            "time",
            "random",
            "secrets",
            "logging",
            "os",
        }
        assert not [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and node.attr in {"now", "utcnow", "today"}
        ]


def test_the_reporter_imports_the_standard_library_and_pytest_alone() -> None:
    path = ROOT / "src/sojourn/record/reporter.py"
    libraries = {name.split(".")[0] for name in imports(path, "src/sojourn")}
    assert libraries <= sys.stdlib_module_names | {"pytest"}
    ast.parse(path.read_text(), feature_version=(3, 8))


def test_http_is_no_package_of_its_own() -> None:
    """With an __init__.py it would shadow the standard library's `http` for every `python -m` run from the root."""
    assert not (ROOT / "http" / "__init__.py").exists()


@pytest.mark.parametrize("link", sorted(LINKS))
def test_the_package_reaches_its_floors_by_links(link: str) -> None:
    assert (ROOT / "src/sojourn" / link).readlink() == Path("../..") / link


@pytest.mark.parametrize("floor", FLOORS)
def test_every_error_that_is_logged_says_what_to_do(floor: str) -> None:
    """Also where nothing is to be done; and a session goes by one name in every line."""
    found = []
    for path in modules(floor):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="log"), attr=level), args=[event, *_]):
                    fields = {keyword.arg for keyword in node.keywords}
                    told = f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(event)}"
                    if level in ("warning", "error", "critical", "exception") and "remedy" not in fields:
                        found.append(f"{told} has no remedy")
                    if "session_id" in fields:
                        found.append(f"{told} should say session")
    assert found == []
