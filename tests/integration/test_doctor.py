"""`sojourn doctor` as a program: what it finds in folders that are well, killed, damaged or not there, and that it changes
nothing."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from sojourn.cli.findings import Finding
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from tests.support import owner, s3
from tests.support.serve import serve
from tests.support.wait import await_until

DEADLINE_S = 60
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("SOJOURN_")}
ENVIRONMENT |= {"PYTHONWARNINGS": "error"}


def doctor(*arguments: str | Path, code: int = 0, **variables: str) -> dict[str, Finding]:
    """The findings, by their check."""
    done = subprocess.run(
        [sys.executable, "-m", "sojourn", "doctor", "--json", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=ENVIRONMENT | variables,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr == ""
    document: dict[str, Any] = json.loads(done.stdout)
    findings = [Finding(**finding) for finding in document["findings"]]
    assert all((finding.remedy is None) == (finding.level == "ok") for finding in findings)
    assert document["ok"] == (code == 0) == all(finding.level != "problem" for finding in findings)
    return {finding.check: finding for finding in findings}


def levels(found: dict[str, Finding], level: str) -> set[str]:
    return {name for name, finding in found.items() if finding.level == level}


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    owner.killed_owner(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_a_data_folder_it_says_what_it_can(tmp_path: Path) -> None:
    found = doctor("--data", tmp_path / "none")
    assert set(found) == {
        "version",
        "sqlite",
        "libraries",
        "settings",
        "data folder",
        "free space",
        "archive",
        "mirror",
    }
    assert "is not there yet" in found["data folder"].detail
    assert "FTS5" in found["sqlite"].detail
    assert "msgspec" in found["libraries"].detail
    assert not (tmp_path / "none").exists()


def test_a_folder_whose_owner_was_killed_is_well_and_stays_as_it_is(killed: Path) -> None:
    before = contents(killed)
    found = doctor("--data", killed)
    assert levels(found, "warning") == {"lost sessions"}
    assert "no owner" in found["data folder"].detail
    assert "3 behind the journal" in found["catalog"].detail
    assert found["sessions"].detail == "3 active"
    assert found["journal"].detail.startswith("3 sessions, ")
    # The shared memory of SQLite's log is no data: whoever opens the database makes it.
    after = contents(killed)
    assert {name: data for name, data in after.items() if not name.endswith("-shm")} == {
        name: data for name, data in before.items() if not name.endswith("-shm")
    }


def test_an_owner_at_work_is_named_and_left_alone(tmp_path: Path) -> None:
    with serve(tmp_path / "data", "--no-tcp", log=tmp_path / "log") as server, server.client() as client:
        client.post("/sessions", json={"title": "t"}).raise_for_status()
        found = doctor("--data", tmp_path / "data")
        assert f"owned by pid {server.process.pid}" in found["data folder"].detail
        assert "lost sessions" not in found
        client.post("/sessions", json={"title": "t"}).raise_for_status()


def lose_journal(folder: Path) -> None:
    for name in ("journal.db", "journal.db-wal", "journal.db-shm"):
        (folder / name).unlink(missing_ok=True)


def no_database(folder: Path) -> None:
    lose_journal(folder)
    (folder / "journal.db").write_bytes(b"this is no database at all" * 1_000)


def newer_format(folder: Path) -> None:
    (folder / "format").write_text("99\n")


@pytest.mark.parametrize(
    ("harm", "check", "said"),
    [
        (lose_journal, "journal", "is not there, and sessions are"),
        (no_database, "journal", "journal.db"),
        (newer_format, "format", "is of format 99"),
    ],
)
def test_what_costs_data_is_a_problem_with_its_remedy(
    killed: Path, harm: Callable[[Path], None], check: str, said: str
) -> None:
    harm(killed)
    found = doctor("--data", killed, code=1)
    assert found[check].level == "problem"
    assert said in found[check].detail


@pytest.mark.anyio
async def test_a_damaged_record_names_its_session(tmp_path: Path) -> None:
    async with Runtime.open(Settings(data_dir=tmp_path, mirror="none")) as runtime:
        first, *others = await owner.fill(runtime)
    journal = tmp_path / "journal.db"
    data = journal.read_bytes()
    assert data.count(b"t::gone") == 1
    journal.write_bytes(data.replace(b"t::gone", b"t::GONE"))
    found = doctor("--data", tmp_path, code=1)["journal"]
    assert found.level == "problem"
    assert found.detail.endswith(f"1 records are damaged; sessions that cannot be read: {first}")
    assert not any(other in found.detail for other in others)


def test_a_catalog_that_is_damaged_or_gone_is_a_warning(killed: Path) -> None:
    for name in ("catalog.db-wal", "catalog.db-shm"):
        (killed / name).unlink(missing_ok=True)
    (killed / "catalog.db").write_bytes(b"this is no database at all" * 1_000)
    found = doctor("--data", killed)
    assert found["catalog"].level == "warning"
    assert "builds it anew" in str(found["catalog"].remedy)
    assert found["sessions"].detail == "3 active"
    (killed / "catalog.db").unlink()
    assert doctor("--data", killed)["catalog"].level == "warning"


def test_leftovers_are_named_and_left(killed: Path) -> None:
    (killed / "sessions" / "ab").mkdir(parents=True)
    left = killed / "sessions" / "ab" / ".tmp-0123"
    left.write_text("part")
    refused = killed / "spool" / "refused-sess_1.ndjson"
    refused.parent.mkdir()
    refused.write_text("{}\n")
    found = doctor("--data", killed)
    assert str(left) in found["leftovers"].detail
    assert "refused-sess_1.ndjson" in found["refused"].detail
    assert left.exists()
    assert refused.exists()


def test_a_recording_that_waits_is_told_from_one_at_work(killed: Path) -> None:
    folder = killed / "spool" / ("sess_" + "1" * 32)
    folder.mkdir(parents=True)
    (folder / "acknowledged").write_text(f"{1_024:20}")
    with (folder / "outbox.ndjson").open("wb") as outbox:
        outbox.write(b"x" * 3_072)
        outbox.flush()
        found = doctor("--data", killed)["spool"]
        assert found.level == "warning"
        assert f"1 recordings wait to be delivered (2.0 KiB): {folder.name}" in found.detail
        fcntl.flock(outbox, fcntl.LOCK_EX)
        assert doctor("--data", killed)["spool"].detail == "nothing waits; 1 recorders at work"


@pytest.mark.parametrize(
    ("archive", "said"),
    [("s3://UPPER_case!/x", "archive"), ("{}/not/at/all", "is not there"), ("{}/file", "is no folder")],
)
def test_an_archive_that_cannot_be_used_is_a_problem(tmp_path: Path, archive: str, said: str) -> None:
    (tmp_path / "file").write_text("")
    found = doctor("--data", tmp_path / "none", code=1, SOJOURN_ARCHIVE=archive.format(tmp_path))
    assert said in found["archive"].detail
    well = doctor("--data", tmp_path / "none", SOJOURN_ARCHIVE=f"{tmp_path}/archive")
    assert well["archive"].level == "ok"
    assert not (tmp_path / "archive").exists()


def test_a_bucket_is_listed_and_one_that_is_not_there_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.set_credentials(monkeypatch)
    credentials: Any = {
        name: value for name, value in os.environ.items() if name.startswith(("AWS_", "NO_PROXY"))
    }
    with s3.serving() as endpoint:
        bucket = s3.make_bucket()
        place = f"s3://{bucket}/prefix?endpoint={endpoint}"
        found = doctor("--data", tmp_path, SOJOURN_ARCHIVE=place, **credentials)
        assert found["archive"].detail == f"s3://{bucket}/prefix at {endpoint} can be listed"
        assert s3.stored(bucket) == {}
        gone = f"s3://no-such-bucket-at-all?endpoint={endpoint}"
        missing = doctor("--data", tmp_path, code=1, SOJOURN_ARCHIVE=gone, **credentials)
        assert "no-such-bucket-at-all" in missing["archive"].detail


def test_settings_that_cannot_be_used_are_a_problem_and_the_folder_is_looked_at_all_the_same(
    killed: Path,
) -> None:
    found = doctor("--data", killed, code=1, SOJOURN_PORT="x")
    assert found["settings"].detail == "SOJOURN_PORT: port is 'x'; give a whole number"
    assert found["sessions"].detail == "3 active"


def test_for_a_person_each_finding_is_a_line_with_its_remedy_below(killed: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sojourn", "doctor", "--data", str(killed)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=ENVIRONMENT,
        check=True,
    )
    lines = done.stdout.splitlines()
    (lost,) = [number for number, line in enumerate(lines) if line.startswith("warning  lost sessions ")]
    assert lines[lost + 1].strip().startswith("-> `sojourn serve` ends them")


def test_a_deep_look_names_every_damaged_object_with_its_remedy(tmp_path: Path) -> None:
    async def fill() -> None:
        settings = Settings(data_dir=tmp_path, seal_after_s=0.0, mirror="none")
        async with Runtime.open(settings) as runtime:
            ended, *_ = await owner.fill(runtime)

            async def moved() -> bool:
                return bool((await runtime.record(ended))["tier"] == "recent")

            await await_until(moved)

    anyio.run(fill)
    assert "carry their checksums" in doctor("--data", tmp_path, "--deep")["content"].detail
    manifest = next(tmp_path.glob("sessions/*/*/manifest.json"))
    manifest.write_bytes(manifest.read_bytes().replace(b"nightly", b"nightlx"))
    assert "content" not in doctor("--data", tmp_path)
    found = doctor("--data", tmp_path, "--deep", code=1)["content"]
    assert (found.level, found.remedy) == ("problem", "put it back from a copy")
    assert manifest.relative_to(tmp_path).as_posix() in found.detail
