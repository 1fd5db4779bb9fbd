"""The place that outlives the process: which command was being handled."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sojourn.actors.errors import UnusableFolder
from sojourn.actors.ports import Identity, InFlight
from sojourn.runtime.stores.inflight import MappedInflight, MemoryInflight

SESSION = "sess_" + "a" * 32


def found(path: Path) -> InFlight | None:
    inflight = MappedInflight.open(path)
    left = inflight.left()
    inflight.close()
    return left


def test_what_was_noted_is_found_after_a_kill(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from sojourn.runtime.stores.inflight import MappedInflight
inflight = MappedInflight.open(Path({str(tmp_path / "inflight")!r}))
inflight.note(b"{SESSION}", 6, "before, and longer than what follows".encode())
inflight.page[0] = 0
inflight.note(b"{SESSION}", 7, "zö".encode())
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    assert found(tmp_path / "inflight") == InFlight(session_id=SESSION, kind=Identity.SOURCE, n=7, name="zö")
    assert found(tmp_path / "inflight") is None  # it was closed in order


def test_nothing_is_found_of_what_was_cleared_or_closed(tmp_path: Path) -> None:
    path = tmp_path / "inflight"
    first = MappedInflight.open(path)
    assert first.left() is None
    first.note(SESSION.encode(), 0, b"c1")
    assert found(path) is not None
    first.note(SESSION.encode(), 0, b"c1")
    first.page[0] = 0
    assert found(path) is None
    first.note(SESSION.encode(), -1, b"00ff")
    first.close()
    first.close()
    assert found(path) is None


def test_a_name_that_is_too_long_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "inflight"
    MappedInflight.open(path).note(SESSION.encode(), 0, b"x" * 300)
    left = found(path)
    assert left is not None
    assert left.name == "x" * 256


@pytest.mark.parametrize(
    ("n", "name", "kind"),
    [(7, b"rep", Identity.SOURCE), (0, b"c1", Identity.COMMAND_ID), (-1, b"00ff", Identity.DIGEST)],
)
def test_a_command_is_told_by_its_identity(tmp_path: Path, n: int, name: bytes, kind: Identity) -> None:
    path = tmp_path / "inflight"
    MappedInflight.open(path).note(SESSION.encode(), n, name)
    assert found(path) == InFlight(session_id=SESSION, kind=kind, n=max(n, 0), name=name.decode())


@pytest.mark.parametrize("data", [b"", b"short"])
def test_a_file_that_was_cut_off_says_nothing(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "inflight"
    path.write_bytes(data)
    assert found(path) is None


def test_a_place_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnusableFolder, match="--data"):
        MappedInflight.open(tmp_path / "nowhere" / "inflight")


def test_in_memory_it_ends_with_the_process() -> None:
    inflight = MemoryInflight()
    inflight.note(SESSION.encode(), 0, b"c1")
    inflight.page[0] = 0
    inflight.close()
    assert inflight.left() is None
