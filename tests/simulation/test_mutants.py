"""The planted faults still fit the tree, and one of them is found."""

import os
import shutil
import subprocess

import pytest

from .mutants.__main__ import HERE, ROOT, hunt, names


def test_every_planted_fault_still_applies() -> None:
    if shutil.which("git") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("git is not installed")
        pytest.skip("git is not installed")
    assert len(names()) >= 25
    broken = []
    for name in names():
        command = ["git", "apply", "--check", str(HERE / f"{name}.patch")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            broken.append(f"{name}: {done.stderr.strip()}")
    assert broken == [], "make the patch anew against the code as it is now"


@pytest.mark.timeout(600)
def test_a_planted_fault_is_found() -> None:
    found = hunt("forget-the-dedup-window", 40)
    assert found.violation is not None
    assert found.seeds <= 40
