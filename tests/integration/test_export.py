"""`sojourn export` as a program: from a folder and from a server, whole or not at all."""

import contextlib
import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.to_thread
import pytest

from sojourn.http.app import create_app
from sojourn.runtime.live import Line
from sojourn.runtime.reader import Reader
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from tests.support import owner
from tests.support.facade import UNKNOWN_ID, serving
from tests.support.reports import junit_cases, listening, recorded_cases, run_pytest
from tests.support.serve import serve
from tests.support.wait import await_until

DEADLINE_S = 60
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("SOJOURN_")}
ENVIRONMENT |= {"PYTHONWARNINGS": "error"}
EVERY_OUTCOME = """
    import pytest
    def test_passes(): pass
    def test_fails(): assert 1 == 2, "\\x1b[31mred\\x00 & <tag>"
    def test_skips(): pytest.skip("not here")
    @pytest.mark.xfail(reason="known")
    def test_xfails(): assert 0
    @pytest.mark.xfail(reason="known")
    def test_xpasses(): pass
    @pytest.mark.xfail(strict=True)
    def test_strict_xpass(): pass
    @pytest.fixture
    def broken(): raise ValueError("in the fixture")
    def test_setup_error(broken): pass
    @pytest.fixture
    def breaks_later():
        yield
        raise ValueError("in the teardown")
    def test_passes_then_teardown_error(breaks_later): pass
    @pytest.mark.parametrize("text", ["a/b", "x::y", "\\xfc", "<&>"])
    def test_parameters(text): pass
    class TestOuter:
        class TestInner:
            def test_nested(self): assert 0
"""


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "sojourn", "export", *map(str, arguments)]


def export(*arguments: str | Path, code: int = 0, **options: Any) -> "subprocess.CompletedProcess[bytes]":
    """The command, to its end."""
    done = subprocess.run(
        command(*arguments), capture_output=True, timeout=DEADLINE_S, env=ENVIRONMENT, check=False, **options
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("killed")
    return folder, owner.killed_owner(folder)


async def stored(folder: Path, session_id: str) -> bytes:
    async with Reader.open(folder) as reader:
        return b"".join([line.line + b"\n" async for line in reader.events(session_id)])


def test_each_format_goes_to_a_pipe_from_a_folder_whose_owner_was_killed(
    killed: tuple[Path, list[str]],
) -> None:
    folder, (first, _, _) = killed
    lines = export(first, "--format", "ndjson", "--data", folder).stdout
    assert lines == anyio.run(stored, folder, first)
    document = json.loads(export("last~2", "--format", "json", "--data", folder).stdout)
    assert document["record"]["session_id"] == first
    assert document["state"]["seq"] == document["record"]["seq"] == len(document["events"])
    assert export(first[-8:], "--format", "junit", "--data", folder).stdout.count(b"<testcase ") == 3


def test_a_file_is_replaced_whole_and_keeps_its_rights_and_its_link(
    killed: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, (first, _, _) = killed
    target, link = tmp_path / "real.ndjson", tmp_path / "link.ndjson"
    target.write_text("what was there")
    target.chmod(0o640)
    link.symlink_to(target)
    said = export(first, "--format", "ndjson", "--data", folder, "--output", link).stderr.decode()
    assert said == f"sojourn: {first} written to {link} ({len(target.read_bytes()) / 1024:.1f} KiB)\n"
    assert target.read_bytes() == anyio.run(stored, folder, first)
    assert target.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"real.ndjson", "link.ndjson"}
    export(first, "--format", "junit", "--data", folder, "-o", tmp_path / "new.xml", umask=0o027)
    assert (tmp_path / "new.xml").stat().st_mode & 0o777 == 0o640


def test_a_server_gives_the_same_bytes_as_its_folder(tmp_path: Path) -> None:
    data = tmp_path / "data"
    _, second, _ = owner.killed_owner(data)
    from_files = export(second, "--format", "ndjson", "--data", data).stdout
    with serve(data, "--port", "0", log=tmp_path / "log", env={"SOJOURN_TOKEN": "t"}) as server:
        by_address = ("--server", server.url, "--token", "t")
        assert export(second, "--format", "ndjson", *by_address).stdout == from_files
        assert export("last~1", "--format", "ndjson", "--data", data, "--token", "t").stdout == from_files
        said = export(second, "--format", "junit", "--server", server.url, code=2).stderr.decode()
        assert "give a token with --token or SOJOURN_TOKEN" in said
        unknown = export(UNKNOWN_ID, "--format", "json", *by_address, "-o", tmp_path / "x", code=2)
        assert f"there is no session '{UNKNOWN_ID}'" in unknown.stderr.decode()
        assert not (tmp_path / "x").exists()


@pytest.mark.anyio
@pytest.mark.parametrize("arguments", [(), ("-n", "2")], ids=["alone", "xdist"])
async def test_junit_is_what_pytests_own_junit_file_says_of_the_same_run(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "pytest.ini").write_text("[pytest]\n")
    (tests / "test_all.py").write_text(re.sub("^    ", "", EVERY_OUTCOME, flags=re.MULTILINE))
    async with listening(tmp_path) as reports:
        await run_pytest(reports, tests, "--junitxml", str(tmp_path / "theirs.xml"), *arguments)
    async with Runtime.open(Settings(data_dir=tmp_path / "data", mirror="none")) as runtime:
        session_id = await owner.create(runtime, plan="junit")
        for result in reports.results:
            named = {name: value for name, value in result.items() if name not in ("source", "n")}
            await owner.ask(runtime, session_id, **named)
    ours = tmp_path / "ours.xml"
    export("last", "--format", "junit", "--data", tmp_path / "data", "-o", ours)
    theirs = junit_cases(tmp_path / "theirs.xml")
    assert theirs.total() == len(reports.results)
    assert junit_cases(ours) == theirs == recorded_cases(reports.results, theirs)
    text = ours.read_text()
    assert "#x1B[31mred#x00 &amp; &lt;tag&gt;" in text
    assert Counter(re.findall(r"<(failure|error|skipped) ", text)) == Counter(
        re.findall(r"<(failure|error|skipped) ", (tmp_path / "theirs.xml").read_text())
    )


def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left(
    killed: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, (first, _, _) = killed
    asked = (first, "--format", "json", "--data", folder)
    gone = export(*asked, "-o", tmp_path / "gone" / "x", code=2).stderr.decode()
    assert "x cannot be written (No such file or directory); name another file with --output" in gone
    assert "Is a directory" in export(*asked, "-o", tmp_path, code=2).stderr.decode()


@pytest.mark.anyio
async def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path: Path) -> None:
    data, target = tmp_path / "data", tmp_path / "exports" / "before"
    target.parent.mkdir()
    target.write_text("what was there")
    async with Runtime.open(Settings(data_dir=data, mirror="none")) as runtime:
        session_id = await owner.create(runtime)
        for _ in range(20):
            await owner.ask(runtime, session_id, type="log.append", stream="stdout", text="x" * 50_000)

    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    done = await anyio.to_thread.run_sync(
        lambda: export(
            session_id, "--format", "json", "--data", data, "-o", target, code=2, preexec_fn=small_files_only
        )
    )
    assert b"there is no room for" in done.stderr
    assert b"free some space" in done.stderr
    assert target.read_text() == "what was there"
    assert [path.name for path in target.parent.iterdir()] == ["before"]


def test_standard_output_may_be_full_or_gone(killed: tuple[Path, list[str]]) -> None:
    folder, (first, _, _) = killed
    arguments = command(first, "--format", "ndjson", "--data", folder)
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            arguments, stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT, timeout=DEADLINE_S, check=False
        )
    assert done.returncode == 2
    assert done.stderr == b"sojourn: input or output: No space left on device; free some space\n"
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        arguments, stdout=theirs, stderr=subprocess.PIPE, env=ENVIRONMENT, timeout=DEADLINE_S, check=False
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_device_is_written_to_and_not_replaced(killed: tuple[Path, list[str]]) -> None:
    folder, (first, _, _) = killed
    export(first, "--format", "ndjson", "--data", folder, "-o", "/dev/null")
    assert not Path("/dev/null").is_file()
    assert (
        "there is no room"
        in export(first, "--format", "ndjson", "--data", folder, "-o", "/dev/full", code=2).stderr.decode()
    )


class Slow:
    """A runtime whose one session breaks off after 300 KiB, or stands still there until it is let go."""

    is_open = True

    def __init__(self, *, stands_still: bool) -> None:
        self.stands_still = stands_still

    async def snapshot(self, session_id: str) -> tuple[dict[str, Any], int, bytes]:
        return {"session_id": session_id, "environment": {}, "plan": "p"}, 1_000, b'{"results":{}}'

    async def events(self, session_id: str) -> AsyncGenerator[Line]:
        for seq in range(1, 300):
            yield Line(1, seq, "log.appended", b'{"fill":"%s"}' % (b"x" * 1_000))
        if self.stands_still:
            await anyio.sleep_forever()


@pytest.mark.anyio
async def test_a_transfer_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    async with serving(create_app(cast(Runtime, Slow(stands_still=False)))) as port:
        arguments = (UNKNOWN_ID, "--format", "ndjson", "--server", f"http://127.0.0.1:{port}")
        done = await anyio.to_thread.run_sync(
            lambda: export(*arguments, "-o", tmp_path / "x.ndjson", code=2), abandon_on_cancel=True
        )
    assert b"the export broke off after" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.anyio
async def test_progress_shows_on_a_terminal_and_a_signal_leaves_no_half_file(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    async with serving(create_app(cast(Runtime, Slow(stands_still=True)))) as port:
        arguments = (UNKNOWN_ID, "--format", "ndjson", "--server", f"http://127.0.0.1:{port}")
        process = await anyio.open_process(
            command(*arguments, "-o", tmp_path / "x.ndjson"), stderr=theirs, env=ENVIRONMENT
        )
        os.close(theirs)
        os.set_blocking(ours, False)
        shown = bytearray()

        def shows_progress() -> bool:
            with contextlib.suppress(BlockingIOError):
                shown.extend(os.read(ours, 65_536))
            return b"KiB written" in shown

        try:
            await await_until(shows_progress, DEADLINE_S)
            (part,) = tmp_path.iterdir()
            assert re.fullmatch(r"\.x\.ndjson\.\w+\.part", part.name)
            process.send_signal(signal.SIGTERM)
            with anyio.fail_after(DEADLINE_S):
                assert await process.wait() == 128 + signal.SIGTERM
        finally:
            if process.returncode is None:
                process.kill()
            os.close(ours)
    assert list(tmp_path.iterdir()) == []
