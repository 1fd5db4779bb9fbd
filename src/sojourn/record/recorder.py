"""`sojourn record`: runs a command as a session. It follows what the command says and uses, and talks to a server.

One rule stands above the others: once the command runs, nothing of ours may hurt it. Each part of the recorder may fail by
itself; then that part stops with a warning, the command goes on, and its exit code stays `record`'s.
"""

import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
from attrs import asdict

from ..client import ServerProblem, ServerUnreachable
from ..launch import Launch
from ..runtime.paths import SOCKET_PATH_BYTES_MAX, runtime_dir
from .connection import Connection, connect
from .delivery import Delivery, Sender, deliver_leftovers
from .inject import reporting_environment, write_plugin
from .listener import ReportListener
from .options import EXIT_NOT_EXECUTABLE, RecordError, RecordOptions
from .outcome import Verdict, runs_pytest, verdict
from .output import OutputFollower
from .process import Ended, OutputSource, RecordedCommand
from .progress import Display, display
from .sampler import Sample, Sampler
from .spool import Outbox, locked_spill, remember_command, spill_paths, spilled, spool_dir
from .summary import Summary, write_document
from .tally import Tally

SAMPLE_INTERVAL_S = 1.0
SHOW_INTERVAL_S = 0.25
DRAIN_DEADLINE_S = 30.0
# For the last words of a pytest that was killed; one that ended by itself has waited for their acknowledgement.
REPORTERS_DEADLINE_S = 1.0
PREVIOUS_DEADLINE_S = 2.0
SAY_DRAINING_AFTER_S = 2.0
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def record(options: RecordOptions, launched: Launch | None = None) -> int:
    """Run the command as a session.

    Args:
        launched: the data folder's server, where it was just started.

    Returns:
        The exit code for `sojourn record`.

    Raises:
        RecordError: the recording could not begin; the command was not run.
    """
    screen = display()
    try:
        summary = anyio.run(_record, options, launched, screen)
    except KeyboardInterrupt:  # before the command ran; later it is forwarded
        return 128 + signal.SIGINT
    finally:
        screen.close()
    for line in summary.lines(options):
        screen.say(line)
    if options.json_path is not None:
        try:
            write_document(options.json_path, summary.document(options))
        except OSError as error:
            screen.say(f"warning: {options.json_path} could not be written ({error.strerror})")
    return summary.verdict.recorder_exit_code


async def _record(options: RecordOptions, launched: Launch | None, screen: Display) -> Summary:
    async with connect(options, launched) as connection:
        spool = spool_dir(options.data_dir.resolve())
        try:
            outbox = Outbox.create(spool, connection.session_id, connection.target)
        except OSError as error:
            raise RecordError(
                f"no room for what is to be delivered ({error}); name another folder with --data"
            ) from error
        try:
            return await Recording(options, connection, outbox, screen).run()
        finally:
            outbox.close()


class Recording:
    """One run of a command: all that happens becomes a line in the outbox, and the outbox is delivered meanwhile."""

    def __init__(
        self, options: RecordOptions, connection: Connection, outbox: Outbox, screen: Display
    ) -> None:
        self._options = options
        self._connection = connection
        self._outbox = outbox
        self._screen = screen
        self._tally = Tally()
        refused_path = outbox.folder.with_name(f"refused-{outbox.session_id}.ndjson")
        self._sender = Sender(connection.client, connection.session_id, refused_path)
        self._delivery = Delivery(outbox, connection.client, self._sender, connection.reconnect)
        self._listener = ReportListener(connection.session_id, self._accept, self._warn)
        self._socket_path = _socket_path(outbox)
        self._sources: list[OutputSource] = []
        self._followers: list[OutputFollower] = []
        self._command_ended = False
        self._interrupted_by: int | None = None
        # The waiting that a further Ctrl-C gives up, once the command has ended.
        self._patience = anyio.CancelScope()
        self._impatient = False
        self._rss_peak_bytes = 0

    async def run(self) -> Summary:
        """Start the command and stay with it to its end. Raises RecordError where it could not be started."""
        listener = await self._prepare()
        started_at = _now()
        with anyio.open_signal_receiver(*ENDING_SIGNALS, signal.SIGWINCH) as signals:
            command = await self._start()
            sampler = Sampler(command.pid)
            self._say_beginning()
            async with anyio.create_task_group() as background:
                parts: list[tuple[str, Callable[[], Awaitable[None]]]] = [
                    ("the delivery", self._delivery.run),
                    ("the pytest reports", lambda: self._listener.serve(listener)),
                    ("the progress", self._show),
                    ("the delivery of earlier recordings", self._deliver_leftovers),
                ]
                for name, part in parts:
                    background.start_soon(self._sheltered, name, part)
                background.start_soon(self._forward_signals, signals, command)
                ended = await self._follow(command, sampler)
                ended_at, duration_s = _now(), self._tally.elapsed_s
                judged, resources = self._finish(ended, sampler)
                delivered = await self._drain()
                previous = await self._previous_session() if delivered else None
                background.cancel_scope.cancel()
        self._socket_path.unlink(missing_ok=True)
        if delivered:
            self._outbox.remove()
        return Summary(
            session_id=self._connection.session_id,
            verdict=judged,
            started_at=started_at,
            ended_at=ended_at,
            duration_s=round(duration_s, 3),
            tally=self._tally,
            resources=resources,
            rss_peak_bytes=self._rss_peak_bytes,
            outbox=self._outbox.statistics(),
            refused=self._sender.refused,
            refused_path=self._sender.refused_path,
            undelivered_in=None if delivered else self._outbox.folder,
            undelivered_because=str(self._delivery.trouble) if self._delivery.trouble is not None else None,
            server=self._connection.client.address,
            previous_session_id=previous,
        )

    async def _prepare(self) -> anyio.abc.SocketListener:
        """What the command's pytest needs to find."""
        folder = self._outbox.folder
        if os.pathsep in str(folder):
            self._warn(
                f"{folder} has a {os.pathsep!r} in its path: pytest cannot report its tests from there"
            )
        try:
            write_plugin(folder / "inject")
            header = {"spill": {"session_id": self._connection.session_id}}
            (folder / "reporter.spill").write_bytes(msgspec.json.encode(header) + b"\n")
            return await anyio.create_unix_listener(self._socket_path, mode=0o600)
        except OSError as error:
            failure = RecordError(f"{folder} cannot be used ({error}); name another with --data")
            raise await self._not_started(failure) from error

    async def _start(self) -> RecordedCommand:
        folder = self._outbox.folder
        environment = reporting_environment(
            os.environ,
            folder=folder / "inject",
            socket_path=self._socket_path,
            spill_path=folder / "reporter.spill",
        )
        self._append([{"type": "session.start"}])
        writing: list[int] = []
        try:
            for stream, own in (("stdout", sys.stdout), ("stderr", sys.stderr)):
                fd = own.fileno()
                source, far = (
                    OutputSource.terminal(fd, self._screen.rows)
                    if os.isatty(fd)
                    else OutputSource.file(folder / stream)
                )
                writing.append(far)
                self._sources.append(source)
                self._followers.append(
                    OutputFollower(
                        source, stream, pass_through_fd=fd, display=self._screen, append=self._append
                    )
                )
            command = RecordedCommand.start(
                self._options.command, stdout_fd=writing[0], stderr_fd=writing[1], environment=environment
            )
            remember_command(folder, command.pid)
        except OSError as error:
            said = f"{self._options.command[0]} cannot be run ({error.strerror})"
            raise await self._not_started(RecordError(said, EXIT_NOT_EXECUTABLE)) from error
        finally:
            for fd in writing:
                os.close(fd)
        return command

    async def _not_started(self, error: RecordError) -> RecordError:
        """End the session that was created for nothing, as far as that can be done."""
        with contextlib.suppress(ServerProblem, ServerUnreachable):
            failure = {"type": "session.fail", "exit_code": error.exit_code, "reason": str(error)}
            await self._connection.client.command(self._connection.session_id, failure)
        self._outbox.remove()
        return error

    async def _follow(self, command: RecordedCommand, sampler: Sampler) -> Ended:
        """Stay with the command until it has ended, and all that it said is read."""
        async with anyio.create_task_group() as following:
            following.start_soon(self._sheltered, "the sampling", lambda: self._sample(sampler))
            for follower in self._followers:
                following.start_soon(self._sheltered, "the output", follower.run)
            ended = await command.wait()
            self._command_ended = True
            with self._patience:
                with anyio.move_on_after(REPORTERS_DEADLINE_S):
                    while self._listener.connections:
                        await anyio.sleep(0.01)
                for follower in self._followers:
                    follower.end()
                for follower in self._followers:
                    await follower.finished.wait()
            following.cancel_scope.cancel()
        for source in self._sources:
            source.close()
        return ended

    def _finish(self, ended: Ended, sampler: Sampler) -> tuple[Verdict, Sample]:
        """The last lines: what pytest could not hand over, the last sample, and how it ended."""
        for path in spill_paths(self._outbox.folder):
            with contextlib.suppress(OSError, msgspec.DecodeError), locked_spill(path) as file:
                for lines in spilled(file):
                    self._accept(lines, [msgspec.json.decode(line) for line in lines])
        resources = sampler.final(ended.cpu_s)
        judged = verdict(
            ended, interrupted_by=self._interrupted_by, runs_pytest=runs_pytest(self._options.command)
        )
        self._append([_sample_command(resources), judged.command()])
        return judged, resources

    async def _drain(self) -> bool:
        """Wait for the delivery of what is left; whether all is delivered."""
        self._patience = anyio.CancelScope()
        if self._impatient:
            self._patience.cancel()
        with self._patience:
            if not await self._delivery.drain(SAY_DRAINING_AFTER_S):
                self._screen.say("delivering what is left; Ctrl-C leaves it for later")
                await self._delivery.drain(DRAIN_DEADLINE_S - SAY_DRAINING_AFTER_S)
        return self._outbox.is_drained

    async def _previous_session(self) -> str | None:
        with anyio.move_on_after(PREVIOUS_DEADLINE_S):
            return await self._connection.previous_session(self._options.plan_or_default)
        return None

    async def _sheltered(self, name: str, part: Callable[[], Awaitable[None]]) -> None:
        """A part that fails ends by itself."""
        try:
            await part()
        except Exception as error:  # noqa: BLE001 - the command must not be hurt by a mistake of ours
            self._warn(f"{name} stopped: {type(error).__name__}: {error}")

    async def _sample(self, sampler: Sampler) -> None:
        next_at = anyio.current_time()
        while True:
            sample = await anyio.to_thread.run_sync(sampler.sample)
            self._rss_peak_bytes = max(self._rss_peak_bytes, sample.rss_bytes)
            self._append([_sample_command(sample)])
            next_at = max(next_at + SAMPLE_INTERVAL_S, anyio.current_time())
            await anyio.sleep_until(next_at)

    async def _show(self) -> None:
        while True:
            self._screen.show(self._tally)
            await anyio.sleep(SHOW_INTERVAL_S)

    async def _deliver_leftovers(self) -> None:
        with contextlib.suppress(ServerProblem, ServerUnreachable):  # the next recording tries again
            await deliver_leftovers(self._options.data_dir.resolve(), self._connection.client)

    async def _forward_signals(
        self, signals: AsyncIterator[signal.Signals], command: RecordedCommand
    ) -> None:
        async for number in signals:
            if number == signal.SIGWINCH:
                self._screen.resize()
                for source, own in zip(self._sources, (sys.stdout, sys.stderr), strict=True):
                    source.resize(own.fileno(), self._screen.rows)
                command.signal_group(number)
            elif self._command_ended:
                self._impatient = True
                self._patience.cancel()
            elif self._interrupted_by is None:
                self._interrupted_by = number
                command.signal_group(number)
            else:
                command.signal_group(signal.SIGKILL)

    def _append(self, commands: Sequence[dict[str, Any]]) -> None:
        """Into the outbox; where the disk is full they are lost, and counted."""
        try:
            self._outbox.append(commands)
        except OSError as error:
            if not self._tally.lost:
                self._warn(f"the spool cannot be written ({error}): what cannot be kept is not recorded")
            self._tally.lost += len(commands)
        else:
            self._tally.log_lines += sum(command["type"] == "log.append" for command in commands)
            self._delivery.notify()

    def _accept(self, lines: list[bytes], commands: list[dict[str, Any]]) -> None:
        """Into the outbox, as a reporter sent them. Raises OSError: then the reporter keeps them."""
        self._outbox.append_lines(lines)
        for command in commands:
            self._tally.observe(command)
        self._delivery.notify()

    def _say_beginning(self) -> None:
        session_id = self._connection.session_id
        self._screen.say(f"recording {session_id} ({self._options.plan_or_default})")
        self._screen.say(f"watch it: sojourn tail {session_id} --follow{self._options.where()}")

    def _warn(self, text: str) -> None:
        self._screen.say(f"warning: {text}")


def _sample_command(sample: Sample) -> dict[str, Any]:
    return {"type": "resource.sample", **asdict(sample)}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _socket_path(outbox: Outbox) -> Path:
    """In the recording's folder, or where that path is too long for a socket, in the runtime folder."""
    inside = outbox.folder / "reporter.sock"
    if len(os.fsencode(inside)) <= SOCKET_PATH_BYTES_MAX:
        return inside
    return runtime_dir() / f"{outbox.session_id[-16:]}.report.sock"
