"""The command's process: its output, its end, and what its tree uses."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import psutil

from sojourn.record.output import OutputFollower
from sojourn.record.process import Ended, Interrupts, OutputSource, RecordedCommand
from sojourn.record.progress import Plain
from sojourn.record.sampler import Sample, Sampler
from sojourn.record.spool import living_command, remember_command
from tests.support.facade import ON_ASYNCIO
from tests.support.wait import await_until

pytestmark = ON_ASYNCIO

PYTHON = sys.executable


class Run:
    """A command whose stdout is followed, passed through into a file (or `passed_fd`), and logged."""

    def __init__(
        self, folder: Path, *command: str, terminal_fd: int | None = None, passed_fd: int | None = None
    ) -> None:
        self.logged: list[dict[str, Any]] = []
        self.passed = folder / "passed"
        self.source, writing = (
            OutputSource.terminal(terminal_fd, 1)
            if terminal_fd is not None
            else OutputSource.memory("stdout")
        )
        self._passed_fd = os.open(self.passed, os.O_WRONLY | os.O_CREAT) if passed_fd is None else passed_fd
        self.follower = OutputFollower(
            self.source,
            "stdout",
            pass_through_fd=self._passed_fd,
            display=Plain(),
            append=self.logged.extend,
        )
        self.command = RecordedCommand.start(
            command, stdout_fd=writing, stderr_fd=writing, environment=os.environ
        )
        os.close(writing)

    async def to_its_end(self) -> Ended:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.follower.run)
            ended = await self.command.wait()
            self.follower.end()
        self.source.close()
        os.close(self._passed_fd)
        return ended

    @property
    def texts(self) -> list[str]:
        return [command["text"] for command in self.logged]


async def test_output_is_passed_through_as_it_is_and_logged_line_by_line(tmp_path: Path) -> None:
    run = Run(tmp_path, "sh", "-c", r"printf 'one\r\ntwo \377\nrest'; exit 3")
    assert (await run.to_its_end()).exit_code == 3
    assert run.passed.read_bytes() == b"one\r\ntwo \xff\nrest"
    assert run.texts == ["one", "two �", "rest"]
    assert [command.get("invalid_utf8", False) for command in run.logged] == [False, True, False]


async def test_a_large_output_comes_through_whole_and_in_order(tmp_path: Path) -> None:
    run = Run(tmp_path, PYTHON, "-c", "for n in range(100_000): print(n)")
    await run.to_its_end()
    assert run.texts == [str(n) for n in range(100_000)]
    assert run.passed.read_text().split() == run.texts


def read(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += os.read(fd, size - len(data))
    return data


async def test_a_pipe_that_nobody_reads_holds_up_its_own_output_alone_and_loses_none_of_it(
    tmp_path: Path,
) -> None:
    """A pipe holds 64 KiB: the rest waits for the reader, and meanwhile this loop, which the recording runs in, goes on."""
    near, far = os.pipe()
    run = Run(tmp_path, PYTHON, "-c", "for n in range(100_000): print(n)", passed_fd=far)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.follower.run)
        await run.command.wait()
        run.follower.end()
        await await_until(lambda: run.logged)
        passed = await anyio.to_thread.run_sync(read, near, 588_890)
    os.close(near)
    run.source.close()
    os.close(far)
    assert run.texts == [str(n) for n in range(100_000)]
    assert passed.decode().split() == run.texts


async def test_a_command_may_empty_its_own_output_and_go_on(tmp_path: Path) -> None:
    """As `echo > /dev/stderr` does in a shell: what it writes after that comes through."""
    source, writing = OutputSource.memory("stdout")
    os.write(writing, b"a long line\n")
    assert source.read() == b"a long line\n"
    again = os.open(f"/proc/self/fd/{writing}", os.O_WRONLY | os.O_TRUNC)
    os.write(again, b"short\n")
    assert source.available_bytes() == 6
    assert source.read() == b"short\n"
    os.write(writing, b"more\n")
    assert source.read() == b"more\n"
    assert source.read() == b""
    source.close()
    for fd in (again, writing):
        os.close(fd)


async def test_a_second_signal_kills_and_one_that_came_before_the_start_is_not_lost(tmp_path: Path) -> None:
    run = Run(tmp_path, "sh", "-c", "trap 'echo got it' TERM; echo ready; while :; do sleep 0.02; done")
    interrupts = Interrupts()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.follower.run)
        await await_until(lambda: run.texts)
        interrupts.take(signal.SIGTERM)
        interrupts.attach(run.command)
        await await_until(lambda: "got it" in run.texts)
        interrupts.take(signal.SIGINT)
        ended = await run.command.wait()
        run.follower.end()
    run.source.close()
    assert (ended.signal, interrupts.by) == (signal.SIGKILL, signal.SIGTERM)


async def test_a_command_with_a_terminal_knows_it_and_its_size(tmp_path: Path) -> None:
    near, far = os.openpty()
    try:
        import termios

        termios.tcsetwinsize(far, (40, 100))
        script = "import os, sys; print(sys.stdout.isatty(), *os.get_terminal_size(1)); print('end')"
        run = Run(tmp_path, PYTHON, "-c", script, terminal_fd=far)
        await run.to_its_end()
    finally:
        os.close(near)
        os.close(far)
    assert run.texts == ["True 100 39", "end"]
    assert run.passed.read_bytes() == b"True 100 39\nend\n"


async def test_a_command_survives_its_recorders_death_in_the_middle_of_its_output(tmp_path: Path) -> None:
    """The recorder is a process that starts the command as ours does, and is killed."""
    script = f"""
import os, pathlib, signal
from sojourn.record.process import OutputSource, RecordedCommand
source, fd = OutputSource.memory("stdout")
child = "import pathlib, time\\nwhile not pathlib.Path('go').exists(): print('x' * 1000, flush=True); time.sleep(0.001)\\n"
child += "pathlib.Path('survived').touch()"
command = RecordedCommand.start([{PYTHON!r}, "-c", child], stdout_fd=fd, stderr_fd=fd, environment=os.environ)
print(command.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = await anyio.run_process([PYTHON, "-c", script], cwd=tmp_path, check=False)
    assert done.returncode == -signal.SIGKILL
    written = Path(f"/proc/{int(done.stdout)}/fd/1")
    size = written.stat().st_size
    await await_until(lambda: written.stat().st_size > size + 10_000)
    (tmp_path / "go").touch()
    await await_until((tmp_path / "survived").exists)


async def test_a_signal_reaches_the_commands_whole_group(tmp_path: Path) -> None:
    run = Run(tmp_path, "sh", "-c", "sleep 60 & echo $!; wait")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.follower.run)
        await await_until(lambda: run.texts)
        run.command.signal_group(signal.SIGTERM)
        ended = await run.command.wait()
        run.follower.end()
    run.source.close()
    assert ended == Ended(None, signal.SIGTERM, ended.cpu_s)
    sleeper = int(run.texts[0])
    await await_until(lambda: not psutil.pid_exists(sleeper) or psutil.Process(sleeper).status() == "zombie")
    run.command.signal_group(signal.SIGTERM)  # nobody is left, and nothing happens


async def test_what_is_still_written_after_the_commands_end_is_not_waited_for(tmp_path: Path) -> None:
    writer = "import os, time\nprint(os.getpid(), flush=True)\nwhile True: print('x', flush=True); time.sleep(0.0005)"
    run = Run(tmp_path, "sh", "-c", f'{PYTHON} -c "{writer}" & sleep 0.5')
    with anyio.fail_after(30):
        await run.to_its_end()
    os.kill(int(run.texts[0]), signal.SIGKILL)


async def test_a_remembered_command_is_told_from_another_process_of_its_number(tmp_path: Path) -> None:
    assert living_command(tmp_path) is None
    remember_command(tmp_path, os.getpid())
    assert living_command(tmp_path) == os.getpid()
    pid, started_ticks = (tmp_path / "command").read_text().split()
    (tmp_path / "command").write_text(f"{pid} {int(started_ticks) - 100}")
    assert living_command(tmp_path) is None


# -- resources ------------------------------------------------------------------------------------------------------

BURN = "import time; end = time.process_time() + {}\nwhile time.process_time() < end: pass"


def started(*command: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)


async def sampled_until_the_end(process: "subprocess.Popen[bytes]", sampler: Sampler) -> list[Sample]:
    samples = []
    while process.poll() is None:
        samples.append(sampler.sample())
        await anyio.sleep(0.02)  # as often as the test needs to see every process; nothing depends on when
    return samples


async def test_cpu_time_of_ended_children_is_kept(tmp_path: Path) -> None:
    burn = f"{PYTHON} -c '{BURN.format(0.3)}'"
    process = started("sh", "-c", f"{burn}; {burn}; sleep 0.2")
    samples = await sampled_until_the_end(process, Sampler(process.pid))
    assert samples[-1].cpu_s >= 0.55
    assert [sample.cpu_s for sample in samples] == sorted(sample.cpu_s for sample in samples)


async def test_a_process_that_lost_its_parent_still_counts(tmp_path: Path) -> None:
    burn = f"{PYTHON} -c '{BURN.format(0.4)}'"
    process = started("sh", "-c", f"({burn} &); sleep 60")
    sampler = Sampler(process.pid)
    await await_until(lambda: sampler.sample().cpu_s >= 0.4)
    await await_until(lambda: sampler.sample().processes == 2)
    process.kill()
    process.wait()
    assert sampler.sample().cpu_s >= 0.4
    os.killpg(process.pid, signal.SIGKILL)


async def test_memory_and_written_bytes_are_those_of_the_tree(tmp_path: Path) -> None:
    script = "data = b'x' * 50_000_000; f = open('file', 'wb'); f.write(data); f.flush(); import os; os.fsync(f); input()"
    process = await anyio.open_process([PYTHON, "-c", script], cwd=tmp_path, stdout=None)
    sampler = Sampler(process.pid)
    try:
        await await_until(lambda: sampler.sample().rss_bytes > 50_000_000)
        before_end = sampler.sample()
        assert before_end.processes == 1
    finally:
        await process.aclose()
    final = sampler.final(cpu_s=123.0)
    assert final.cpu_s == 123.0
    assert final.written_bytes >= before_end.written_bytes
    assert (final.rss_bytes, final.processes) == (0, 0)


async def test_the_end_of_a_command_tells_the_cpu_time_of_all_it_waited_for(tmp_path: Path) -> None:
    run = Run(tmp_path, "sh", "-c", f"{PYTHON} -c '{BURN.format(0.3)}'; true")
    assert (await run.to_its_end()).cpu_s >= 0.3
