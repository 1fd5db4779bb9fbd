"""The pytest reporter in real pytest processes, against the recorder's own listener."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import anyio
import pytest

from tests.support.facade import ON_ASYNCIO
from tests.support.reports import SESSION, junit_cases, listening, prepared, recorded_cases, run_pytest
from tests.support.wait import await_until

pytestmark = ON_ASYNCIO

EVERY_OUTCOME = """
    import unittest
    import pytest

    @pytest.fixture
    def broken_setup():
        raise RuntimeError("no setup")

    @pytest.fixture
    def broken_teardown():
        yield
        raise RuntimeError("no teardown")

    def test_passes(): pass
    def test_fails(): assert 1 == 2, "one is not two"
    def test_skips(): pytest.skip("not today")
    @pytest.mark.skip(reason="never")
    def test_marked_skip(): pass
    @pytest.mark.xfail(reason="known")
    def test_xfails(): assert False
    @pytest.mark.xfail(reason="fixed meanwhile")
    def test_xpasses(): pass
    @pytest.mark.xfail(strict=True, reason="must fail")
    def test_strict_xpass(): pass
    @pytest.mark.xfail(run=False, reason="crashes")
    def test_not_run(): pass
    def test_setup_error(broken_setup): pass
    def test_passes_then_teardown_error(broken_teardown): pass
    def test_fails_then_teardown_error(broken_teardown): assert False, "the test's own failure"
    def test_xfail_in_the_test(): pytest.xfail("gave up")

    @pytest.mark.parametrize("value", ["a/b", "x::y", "ü", "[", 1.5])
    def test_parameters(value): pass

    class TestOuter:
        def test_method(self): pass
        class TestInner:
            @pytest.mark.parametrize("n", [1, 2])
            def test_nested(self, n): assert n == 1

    class TestUnit(unittest.TestCase):
        def test_unit(self): pass
        @unittest.expectedFailure
        def test_expected(self): self.fail()
        @unittest.skip("no")
        def test_skipped(self): pass
"""
OUTCOMES = {
    "pkg.test_all::test_passes": "passed",
    "pkg.test_all::test_fails": "failed",
    "pkg.test_all::test_skips": "skipped",
    "pkg.test_all::test_marked_skip": "skipped",
    "pkg.test_all::test_xfails": "xfailed",
    "pkg.test_all::test_xpasses": "xpassed",
    "pkg.test_all::test_strict_xpass": "failed",
    "pkg.test_all::test_not_run": "xfailed",
    "pkg.test_all::test_setup_error": "error",
    "pkg.test_all::test_passes_then_teardown_error": "error",
    "pkg.test_all::test_fails_then_teardown_error": "error",
    "pkg.test_all::test_xfail_in_the_test": "xfailed",
    "pkg.test_all::test_parameters[a/b]": "passed",
    "pkg.test_all::test_parameters[x::y]": "passed",
    "pkg.test_all::test_parameters[\\xfc]": "passed",
    "pkg.test_all::test_parameters[[]": "passed",
    "pkg.test_all::test_parameters[1.5]": "passed",
    "pkg.test_all.TestOuter::test_method": "passed",
    "pkg.test_all.TestOuter.TestInner::test_nested[1]": "passed",
    "pkg.test_all.TestOuter.TestInner::test_nested[2]": "failed",
    "pkg.test_all.TestUnit::test_unit": "passed",
    "pkg.test_all.TestUnit::test_expected": "xfailed",
    "pkg.test_all.TestUnit::test_skipped": "skipped",
    "pkg.test_broken": "error",
    "pkg.test_no_module": "skipped",
}
XDIST = ("-n", "2")
WITH_AND_WITHOUT_XDIST = pytest.mark.parametrize("arguments", [(), XDIST], ids=["alone", "xdist"])


def write(folder: Path, **files: str) -> Path:
    """Test modules in a package `pkg`, with nothing above it that pytest could take for its root."""
    (folder / "pkg").mkdir(parents=True)
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "pkg" / "__init__.py").write_text("")
    for name, text in files.items():
        (folder / "pkg" / f"{name}.py").write_text(textwrap.dedent(text))
    return folder


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    return write(
        tmp_path / "tests",
        test_all=EVERY_OUTCOME,
        test_broken="import no_such_module\n",
        test_no_module="import pytest\npytest.importorskip('no_such_module')\n",
    )


@WITH_AND_WITHOUT_XDIST
async def test_every_case_is_reported_once_with_its_outcome(
    tmp_path: Path, everything: Path, arguments: tuple[str, ...]
) -> None:
    async with listening(tmp_path) as reports:
        await run_pytest(reports, everything, "--continue-on-collection-errors", *arguments)
    assert reports.outcomes == OUTCOMES


@WITH_AND_WITHOUT_XDIST
async def test_what_is_recorded_equals_pytests_own_junit_file(
    tmp_path: Path, everything: Path, arguments: tuple[str, ...]
) -> None:
    async with listening(tmp_path) as reports:
        await run_pytest(
            reports,
            everything,
            "--continue-on-collection-errors",
            "--junitxml",
            str(tmp_path / "j.xml"),
            *arguments,
        )
    junit = junit_cases(tmp_path / "j.xml")
    assert recorded_cases(reports.results, junit) == junit


@WITH_AND_WITHOUT_XDIST
async def test_the_progress_runs_from_nothing_to_the_number_of_collected_tests(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    tests = write(
        tmp_path / "tests",
        test_many="import pytest\n@pytest.mark.parametrize('n', range(30))\ndef test(n): pass\n",
    )
    async with listening(tmp_path) as reports:
        await run_pytest(reports, tests, *arguments)
    assert reports.progress[0] == (0, 30)
    assert reports.progress[-1] == (30, 30)
    assert [done for done, _ in reports.progress] == sorted(done for done, _ in reports.progress)


async def test_what_is_said_of_a_failure_is_its_message_and_its_traceback(
    tmp_path: Path, everything: Path
) -> None:
    async with listening(tmp_path) as reports:
        await run_pytest(reports, everything, "--continue-on-collection-errors")
    by_id = {result["case_id"]: result for result in reports.results}
    failed = by_id["pkg.test_all::test_fails"]
    assert failed["message"].startswith("AssertionError: one is not two")
    assert "def test_fails" in failed["details"]
    assert failed["duration_s"] >= 0
    assert failed["started_at"].endswith("Z")
    assert by_id["pkg.test_all::test_skips"]["message"] == "not today"
    assert by_id["pkg.test_all::test_xfails"]["message"] == "known"
    both = by_id["pkg.test_all::test_fails_then_teardown_error"]
    assert "the test's own failure" in both["details"]
    assert "no teardown" in both["details"]
    assert "no_such_module" in by_id["pkg.test_broken"]["details"]


async def test_a_case_that_runs_again_gets_a_number(tmp_path: Path) -> None:
    conftest = """
        from _pytest.runner import runtestprotocol
        def pytest_runtest_protocol(item, nextitem):
            runtestprotocol(item, nextitem=nextitem)
    """
    tests = write(tmp_path / "tests", conftest=conftest, test_one="def test_it(): pass\n")
    async with listening(tmp_path) as reports:
        await run_pytest(reports, tests)
    assert list(reports.outcomes) == ["pkg.test_one::test_it", "pkg.test_one::test_it#2"]


async def test_tests_of_one_node_id_in_two_packages_stay_apart(tmp_path: Path) -> None:
    """As under `--pyargs`: the node ids are relative, and JUnit's names are not unique."""
    for package in ("one", "two"):
        folder = tmp_path / "lib" / package / "tests"
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").write_text("")
        (folder / "__init__.py").write_text("")
        (folder / "test_same.py").write_text("def test_it(): pass\n")
    (tmp_path / "empty").mkdir()
    async with listening(tmp_path) as reports:
        environment = reports.environment
        os.environ["PYTHONPATH"] = str(tmp_path / "lib")
        try:
            await run_pytest(reports, tmp_path / "empty", "--pyargs", "one", "two")
        finally:
            del os.environ["PYTHONPATH"]
        assert environment["PYTHONPATH"] != str(tmp_path / "lib")
    assert set(reports.outcomes) == {"one.tests.test_same::test_it", "two.tests.test_same::test_it"}


async def test_a_failed_subtest_fails_its_case_and_counts_no_other(tmp_path: Path) -> None:
    text = """
        def test_parts(subtests):
            for n in range(3):
                with subtests.test(n=n):
                    assert n != 1
    """
    async with listening(tmp_path) as reports:
        await run_pytest(reports, write(tmp_path / "tests", test_sub=text))
    assert reports.outcomes == {"pkg.test_sub::test_parts": "failed"}


async def test_a_crashed_xdist_worker_is_an_error_of_its_test(tmp_path: Path) -> None:
    text = "import os\ndef test_crash(): os._exit(1)\ndef test_other(): pass\n"
    async with listening(tmp_path) as reports:
        await run_pytest(reports, write(tmp_path / "tests", test_crash=text), *XDIST)
    assert reports.outcomes == {"pkg.test_crash::test_crash": "error", "pkg.test_crash::test_other": "passed"}


async def test_an_inner_pytest_does_not_report(tmp_path: Path) -> None:
    text = """
        import os, subprocess, sys
        pytest_plugins = ["pytester"]
        def test_outer(pytester):
            pytester.makepyfile("def test_inner(): pass")
            assert pytester.runpytest_inprocess().ret == 0
            assert subprocess.run([sys.executable, "-m", "pytest"], cwd=pytester.path).returncode == 0
            assert not any(name.startswith("SOJOURN_REPORT") for name in os.environ)
    """
    async with listening(tmp_path) as reports:
        done = await run_pytest(
            reports, write(tmp_path / "tests", test_outer=text), "-o", "pytester_example_dir=."
        )
    assert reports.outcomes == {"pkg.test_outer::test_outer": "passed"}, done.stdout


async def test_two_runs_in_one_process_report_both(tmp_path: Path) -> None:
    tests = write(tmp_path / "tests", test_a="def test_a(): pass\n", test_b="def test_b(): pass\n")
    script = "import pytest, sys; pytest.main(['pkg/test_a.py']); sys.exit(pytest.main(['pkg/test_b.py']))"
    async with listening(tmp_path) as reports:
        done = await anyio.run_process(
            [sys.executable, "-c", script], cwd=tests, env=reports.environment, check=False
        )
    assert done.returncode == 0
    assert set(reports.outcomes) == {"pkg.test_a::test_a", "pkg.test_b::test_b"}


# -- a reporter that cannot hurt the tests --------------------------------------------------------------------------


async def test_a_suite_sees_no_thread_and_no_warning_of_ours(tmp_path: Path) -> None:
    text = """
        import os, threading
        def test_alone(): assert threading.active_count() == 1
        def test_fork():
            pid = os.fork()
            if not pid: os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        def test_a_forked_child_may_end_as_it_likes():
            pid = os.fork()
            if not pid: raise SystemExit(0)
            os.waitpid(pid, 0)
    """
    async with listening(tmp_path) as reports:
        done = await run_pytest(reports, write(tmp_path / "tests", test_fork=text), "-W", "error")
    assert done.returncode == 0, done.stdout
    assert len(reports.outcomes) == 3


async def test_a_suite_that_forbids_sockets_still_reports(tmp_path: Path) -> None:
    conftest = """
        import socket
        class Forbidden(socket.socket):
            def __new__(cls, *args, **kwargs): raise RuntimeError("no network in tests")
        socket.socket = Forbidden
    """
    async with listening(tmp_path) as reports:
        await run_pytest(reports, write(tmp_path / "tests", conftest=conftest, test_a="def test_a(): pass\n"))
    assert reports.outcomes == {"pkg.test_a::test_a": "passed"}


@pytest.mark.parametrize("exit_code", [0, 1, 5])
async def test_pytests_exit_code_and_output_are_its_own(tmp_path: Path, exit_code: int) -> None:
    text = {0: "def test_a(): pass", 1: "def test_a(): assert 0", 5: ""}[exit_code]
    tests = write(tmp_path / "tests", test_a=text)
    async with listening(tmp_path) as reports:
        done = await run_pytest(reports, tests, "--durations=0", "--durations-min=100")
    assert done.returncode == exit_code
    assert "sojourn" not in done.stdout + done.stderr


async def test_without_a_recorder_the_results_go_to_the_spill_file(tmp_path: Path, everything: Path) -> None:
    reports = prepared(tmp_path)
    reports.spill_path.write_text(json.dumps({"spill": {"session_id": SESSION}}) + "\n")
    done = await run_pytest(reports, everything, "--continue-on-collection-errors")
    assert done.returncode == 1
    header, *commands = reports.spilled()
    assert header == {"spill": {"session_id": SESSION}}
    assert [command["n"] for command in commands] == list(range(1, len(commands) + 1))
    assert len({command["source"] for command in commands}) == 1
    reports.commands = commands
    assert reports.outcomes == OUTCOMES


async def test_a_recorder_that_goes_away_in_between_loses_nothing(tmp_path: Path) -> None:
    text = """
        import pathlib, time
        def test_first(): pass
        def test_waits():
            deadline = time.monotonic() + 30
            while not pathlib.Path("go").exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
        def test_last(): pass
    """
    tests = write(tmp_path / "tests", test_three=text)
    async with anyio.create_task_group() as tasks:
        async with listening(tmp_path) as reports:
            tasks.start_soon(run_pytest, reports, tests)
            await await_until(lambda: len(reports.results) == 1)
        (tests / "go").touch()
    _, *spilled = reports.spilled()
    taken = len(reports.commands)
    # What was taken and not acknowledged comes again, under its number.
    first = spilled[0]["n"]
    assert 1 <= first <= taken + 1
    assert [command["n"] for command in spilled] == list(range(first, first + len(spilled)))
    reports.commands += spilled[taken + 1 - first :]
    assert list(reports.outcomes.values()) == ["passed"] * 3


async def test_a_recorder_that_is_stopped_holds_no_test_up(tmp_path: Path) -> None:
    """A listener that accepts and never reads: beyond what sockets hold, everything waits in memory, then in the spill."""
    text = """
        import pytest
        @pytest.mark.parametrize("n", range(300))
        def test_wordy(n): assert not "x" * 50_000
    """
    tests = write(tmp_path / "tests", test_wordy=text)
    reports = prepared(tmp_path)
    listener = await anyio.create_unix_listener(reports.socket_path)
    async with listener:
        done = await run_pytest(reports, tests, "--no-summary")
    assert done.returncode == 1
    reports.commands = reports.spilled()
    assert len(reports.outcomes) == 300


async def test_a_recorder_without_room_is_tried_again_and_then_spilled_for(tmp_path: Path) -> None:
    async with listening(tmp_path) as reports:
        reports.full = True
        done = await run_pytest(reports, write(tmp_path / "tests", test_a="def test_a(): pass\n"))
    assert done.returncode == 0
    assert reports.commands == []
    assert [command["type"] for command in reports.spilled() if "type" in command].count("result.record") == 1


async def test_a_killed_pytest_has_reported_what_it_had_finished(tmp_path: Path) -> None:
    text = "import os, signal\ndef test_a(): pass\ndef test_b(): os.kill(os.getpid(), signal.SIGKILL)\n"
    async with listening(tmp_path) as reports:
        done = await run_pytest(reports, write(tmp_path / "tests", test_a=text))
        assert done.returncode == -signal.SIGKILL
        await await_until(lambda: reports.results)
    assert reports.outcomes == {"pkg.test_a::test_a": "passed"}


async def test_a_killed_pytest_has_reported_what_it_had_finished_to_a_recorder_that_had_not_answered_yet(
    tmp_path: Path,
) -> None:
    text = "import os, signal\ndef test_a(): pass\ndef test_b(): os.kill(os.getpid(), signal.SIGKILL)\n"
    reports = prepared(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(reports.socket_path))
        listener.listen()
        await run_pytest(reports, write(tmp_path / "tests", test_a=text))
        with listener.accept()[0] as connection, connection.makefile("rb") as lines:
            reports.commands = [command for line in lines if "type" in (command := json.loads(line))]
    assert reports.outcomes == {"pkg.test_a::test_a": "passed"}


async def test_an_environment_without_a_recorder_is_not_touched(tmp_path: Path) -> None:
    reports = prepared(tmp_path)
    tests = write(tmp_path / "tests", test_a="def test_a(): pass\n")
    environment = {k: v for k, v in reports.environment.items() if not k.startswith("SOJOURN_")}
    done = await anyio.run_process(
        [sys.executable, "-m", "pytest"], cwd=tests, env=environment, check=False, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0
    assert not reports.spill_path.exists()
