"""The papers say what is: every test, file and link they name is there, and the code map misses no module."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAPERS = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").rglob("*.md"))
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
README_LINES_MAX = 150


def named(paper: Path) -> str:
    return paper.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("paper", PAPERS, ids=named)
def test_every_file_that_a_paper_links_to_is_there(paper: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", paper.read_text())
    missing = [link for link in links if "://" not in link and not (paper.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("paper", PAPERS, ids=named)
def test_every_test_that_a_paper_names_is_there(paper: Path) -> None:
    missing = [
        f"{path}::{test}"
        for test, path in re.findall(r"\[`(test_\w+)`\]\(([^)]+)\)", paper.read_text())
        if f"def {test}(" not in (paper.parent / path).read_text()
    ]
    assert missing == []


def test_the_code_map_names_every_module_and_none_that_is_gone() -> None:
    mapped = set(re.findall(r"`((?:actors|runtime|http|src/sojourn)/[\w/]+\.py)`", ARCHITECTURE))
    modules = {
        path.relative_to(ROOT).as_posix()
        for folder in ("actors", "runtime", "http", "src/sojourn/cli", "src/sojourn/record")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    } | {path.relative_to(ROOT).as_posix() for path in (ROOT / "src/sojourn").glob("*.py")}
    assert sorted(modules - mapped) == [], "ARCHITECTURE.md's code map misses these: add a line"
    assert sorted(mapped - modules) == [], "ARCHITECTURE.md names these, and they are gone"


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES_MAX
