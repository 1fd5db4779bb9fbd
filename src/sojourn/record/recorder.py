"""`sojourn record`: follows what a command says and uses, and talks to a server.

One rule stands above the others: once the command runs, nothing of ours may hurt it. Each part of the recorder may fail by
itself; then that part stops with a warning, the command goes on, and its exit code stays `record`'s.
"""

import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
from attrs import asdict

from ..client import ServerProblem, ServerUnreachable
from .begin import ENDING_SIGNALS, Beginning
from .connection import Connection, connect
from .delivery import Delivery, Sender, deliver_leftovers, seal
from .limit import KILL_AFTER_S, reason
from .listener import ReportListener
from .outcome import Verdict, runs_pytest, verdict
from .output import OutputFollower
from .process import Ended
from .progress import Display
from .sampler import Sample, Sampler
from .spool import Room, locked_spill, reporters_lost, spill_paths, spilled
from .summary import Summary
from .tally import Tally

SAMPLE_INTERVAL_S = 1.0
SHOW_INTERVAL_S = 0.25
JUNIT_INTERVAL_S = 0.5
# Looking for files may take long in a large tree: at most so large a part of the time goes into it.
JUNIT_SHARE = 0.05
DRAIN_DEADLINE_S = 30.0
# For the last words of a pytest that was killed; one that ended by itself has waited for their acknowledgement.
REPORTERS_DEADLINE_S = 1.0
# Sealing, and asking for the session before: neither is worth waiting for.
LAST_QUESTIONS_DEADLINE_S = 2.0
# For what earlier recordings left: a server that has just taken ours takes that, too.
LEFTOVERS_DEADLINE_S = 15.0
SAY_DRAINING_AFTER_S = 2.0
SAY_SILENT_AFTER_S = 10.0


def record(beginning: Beginning, screen: Display) -> Summary:
    """Stay with the command to its end. Raises nothing that has to do with a server."""
    return anyio.run(_record, beginning, screen)


async def _record(beginning: Beginning, screen: Display) -> Summary:
    try:
        async with connect(beginning.options, beginning.launched) as connection:
            return await Recording(beginning, connection, screen).run()
    finally:
        beginning.outbox.close()


class Recording:
    """One run of a command: all that happens becomes a line in the outbox, and the outbox is delivered meanwhile."""

    def __init__(self, beginning: Beginning, connection: Connection, screen: Display) -> None:
        self._beginning = beginning
        self._options = beginning.options
        self._connection = connection
        self._outbox = beginning.outbox
        self._screen = screen
        self._tally = Tally(started=beginning.started)
        if beginning.resumption is not None:
            for case_id, result in beginning.resumption.results.items():
                self._tally.observe({"type": "result.record", **result, "case_id": case_id})
        refused_path = self._outbox.folder.with_name(f"refused-{beginning.session_id}.ndjson")
        self._sender = Sender(connection.client, beginning.session_id, refused_path)
        self._delivery = Delivery(self._outbox, connection.client, self._sender, connection.reconnect)
        self._listener = ReportListener(beginning.session_id, self._accept, self._warn)
        self._followers = [
            OutputFollower(source, stream, pass_through_fd=own.fileno(), display=screen, append=self._log)
            for source, stream, own in zip(
                beginning.sources, ("stdout", "stderr"), (sys.stdout, sys.stderr), strict=True
            )
        ]
        self._junit = beginning.junit
        self._command_ended = False
        self._over_limit = False
        # The waiting that a further Ctrl-C gives up, once the command has ended.
        self._patience = anyio.CancelScope()
        self._impatient = False
        self._spills_are_left = False
        self._leftovers_are_done = anyio.Event()
        self._rss_peak_bytes = 0
        self._warned: set[str] = set()

    async def run(self) -> Summary:
        """Stay with the command to its end."""
        beginning = self._beginning
        with anyio.open_signal_receiver(*ENDING_SIGNALS, signal.SIGWINCH) as signals:
            sampler = Sampler(beginning.command.pid)
            self._say_beginning()
            async with anyio.create_task_group() as background:
                parts: list[tuple[str, Callable[[], Awaitable[None]]]] = [
                    ("the delivery", self._delivery.run),
                    ("the pytest reports", self._listen),
                    ("the progress", self._show),
                    ("the delivery of earlier recordings", self._deliver_leftovers),
                ]
                for name, part in parts:
                    background.start_soon(self._sheltered, name, part)
                background.start_soon(self._forward_signals, signals)
                ended = await self._follow(sampler)
                ended_at, duration_s = datetime.now(UTC), self._tally.elapsed_s
                judged, resources = self._finish(ended, sampler)
                delivered = await self._drain()
                previous = await self._last_questions() if delivered else None
                if delivered:
                    with self._renewed_patience(), anyio.move_on_after(LEFTOVERS_DEADLINE_S):
                        await self._leftovers_are_done.wait()
                background.cancel_scope.cancel()
        beginning.socket_path.unlink(missing_ok=True)
        self._tally.lost["other"] += self._outbox.settle()
        if delivered:
            self._outbox.remove()
        return Summary(
            session_id=beginning.session_id,
            plan=beginning.plan,
            attempt=beginning.resumption.attempt if beginning.resumption is not None else 1,
            verdict=judged,
            started_at=_text(beginning.started_at),
            ended_at=_text(ended_at),
            duration_s=round(duration_s, 3),
            tally=self._tally,
            resources=resources,
            rss_peak_bytes=self._rss_peak_bytes,
            outbox=self._outbox.statistics(),
            refused=self._sender.refused,
            refused_path=self._sender.refused_path,
            undelivered_in=None if delivered else self._outbox.folder,
            undelivered_because=self._why_not_delivered(),
            server=self._connection.client.address,
            previous_session_id=previous,
        )

    async def _listen(self) -> None:
        if self._beginning.listener is not None:
            listener = await anyio.abc.SocketListener.from_socket(self._beginning.listener)
            await self._listener.serve(listener)

    async def _follow(self, sampler: Sampler) -> Ended:
        """Stay with the command until it has ended, and all that it said is read."""
        async with anyio.create_task_group() as following:
            following.start_soon(self._sheltered, "the sampling", lambda: self._sample(sampler))
            following.start_soon(self._sheltered, "the reading of JUnit files", self._watch_junit)
            following.start_soon(self._sheltered, "the time limit", self._keep_limit)
            for follower in self._followers:
                following.start_soon(self._sheltered, "the output", follower.run)
            ended = await self._beginning.command.wait()
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
        await self._sheltered("the reading of JUnit files", self._finish_junit)
        for source in self._beginning.sources:
            source.close()
        return ended

    def _finish(self, ended: Ended, sampler: Sampler) -> tuple[Verdict, Sample]:
        """The last lines: what pytest could not hand over, the last sample, what is missing, and how it ended."""
        self._take_spills()
        resources = sampler.final(ended.cpu_s)
        resumed = self._beginning.resumption is not None
        judged = verdict(
            ended,
            interrupted_by=self._beginning.interrupts.by,
            runs_pytest=runs_pytest(self._options.command),
            failed_before=self._tally.failures if resumed else None,
            over_limit_s=self._options.time_limit_s if self._over_limit else None,
        )
        commands = [_sample_command(resources), judged.command()]
        if self._tally.lost.total():
            said = f"{self._tally.lost_text()} are not recorded: there was no room for them to wait"
            commands.insert(0, _own_line("warning", said))
        self._append(commands, Room.END)
        return judged, resources

    def _take_spills(self) -> None:
        """What pytest could not hand over. A spill file that is still written to, or finds no room, stays where it is."""
        self._tally.lost["result.record"] += reporters_lost(self._outbox.folder)
        for path in spill_paths(self._outbox.folder):
            try:
                with locked_spill(path) as file:
                    for lines in spilled(file):
                        self._accept(lines, [msgspec.json.decode(line) for line in lines], Room.MOVED)
                path.unlink()
            except (OSError, msgspec.DecodeError):
                self._spills_are_left = True

    async def _drain(self) -> bool:
        """Wait for the delivery of what is left; whether all is delivered."""
        with self._renewed_patience():
            if not await self._delivery.drain(SAY_DRAINING_AFTER_S) and self._delivery.is_worth_waiting:
                self._screen.say("delivering what is left; Ctrl-C leaves it for later")
                await self._delivery.drain(DRAIN_DEADLINE_S - SAY_DRAINING_AFTER_S)
        return self._outbox.is_drained and not self._spills_are_left

    def _renewed_patience(self) -> anyio.CancelScope:
        """A waiting that a further Ctrl-C gives up; there is none once one has."""
        self._patience = anyio.CancelScope()
        if self._impatient:
            self._patience.cancel()
        return self._patience

    async def _last_questions(self) -> str | None:
        """The last act of a clean end: nothing more comes. Then, what this session can be compared with."""
        with anyio.move_on_after(LAST_QUESTIONS_DEADLINE_S):
            with contextlib.suppress(
                ServerProblem, ServerUnreachable
            ):  # then the server seals in its own time
                await seal(self._beginning.session_id, self._connection.client)
            return await self._connection.previous_session(self._beginning.plan, self._beginning.session_id)
        return None

    def _why_not_delivered(self) -> str | None:
        if self._delivery.trouble is not None:
            return str(self._delivery.trouble)
        silent_s = self._delivery.silent_s
        if silent_s:
            return f"the server at {self._connection.client.address} has given no answer for {silent_s:.0f} s"
        return "a pytest has not ended" if self._spills_are_left else None

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
            self._append([_sample_command(sample)], Room.LOG)
            next_at = max(next_at + SAMPLE_INTERVAL_S, anyio.current_time())
            await anyio.sleep_until(next_at)

    async def _watch_junit(self) -> None:
        while self._junit is not None:
            began = anyio.current_time()
            self._results(await anyio.to_thread.run_sync(self._junit.look))
            took_s = anyio.current_time() - began
            await anyio.sleep(max(JUNIT_INTERVAL_S, took_s / JUNIT_SHARE))

    async def _finish_junit(self) -> None:
        if self._junit is not None:
            commands, said = await anyio.to_thread.run_sync(self._junit.finish)
            self._results(commands)
            for text in said:
                self._warn(text)
                self._append([_own_line("warning", text)], Room.RESULT)

    async def _keep_limit(self) -> None:
        limit_s = self._options.time_limit_s
        if limit_s is None:
            return
        await anyio.sleep(max(0.0, limit_s - self._tally.elapsed_s))
        command = self._beginning.command
        if self._beginning.interrupts.by is None and not self._command_ended:
            self._over_limit = True
            self._screen.say(f"the command is {reason(limit_s)}, and is ended")
            command.signal_group(signal.SIGTERM)
            await anyio.sleep(KILL_AFTER_S)
            if not self._command_ended:
                command.signal_group(signal.SIGKILL)

    async def _show(self) -> None:
        silence_said = False
        while True:
            self._screen.show(self._tally)
            if not silence_said and self._delivery.silent_s > SAY_SILENT_AFTER_S:
                silence_said = True
                self._screen.say(
                    f"{self._why_not_delivered()}; what is recorded waits in {self._outbox.folder}"
                )
            await anyio.sleep(SHOW_INTERVAL_S)

    async def _deliver_leftovers(self) -> None:
        await self._delivery.connected.wait()
        try:
            with contextlib.suppress(ServerProblem, ServerUnreachable):  # the next recording tries again
                await deliver_leftovers(self._options.data_dir.resolve(), self._connection.client)
        finally:
            self._leftovers_are_done.set()

    async def _forward_signals(self, signals: AsyncIterator[signal.Signals]) -> None:
        async for number in signals:
            if number == signal.SIGWINCH:
                self._screen.resize()
                for source, own in zip(self._beginning.sources, (sys.stdout, sys.stderr), strict=True):
                    source.resize(own.fileno(), self._screen.rows)
                self._beginning.command.signal_group(number)
            elif self._command_ended:
                self._impatient = True
                self._patience.cancel()
            else:
                self._beginning.interrupts.take(number)

    def _log(self, lines: Sequence[dict[str, Any]]) -> None:
        if self._append(lines, Room.LOG):
            self._tally.log_lines += len(lines)

    def _results(self, commands: Sequence[dict[str, Any]]) -> None:
        for command in commands:
            if self._append([command], Room.RESULT):
                self._tally.observe(command)

    def _append(self, commands: Sequence[dict[str, Any]], room: Room) -> bool:
        """Into the outbox; what finds no room there is lost, and counted."""
        try:
            self._outbox.append(commands, room)
        except OSError as error:
            self._warn(
                f"the spool takes no more ({error.strerror}): what finds no room is counted, and not recorded"
            )
            self._tally.lost.update(command["type"] for command in commands)
            return False
        self._delivery.notify()
        return True

    def _accept(self, lines: list[bytes], commands: list[dict[str, Any]], room: Room = Room.RESULT) -> None:
        """Into the outbox, as a reporter sent them. Raises OSError: then the reporter keeps them."""
        self._outbox.append_lines(lines, room)
        for command in commands:
            self._tally.observe(command)
        self._delivery.notify()

    def _say_beginning(self) -> None:
        beginning = self._beginning
        self._screen.say(f"recording {beginning.session_id} ({beginning.plan})")
        if beginning.resumption is not None:
            found = f"{len(beginning.resumption.results):,} cases have a result already"
            self._screen.say(f"attempt {beginning.resumption.attempt}: {found}")
        self._screen.say(f"watch it: sojourn tail {beginning.session_id} --follow{self._options.where()}")
        for text in beginning.warnings:
            self._warn(text)

    def _warn(self, text: str) -> None:
        """Once: what goes wrong may go wrong with every line."""
        if text not in self._warned:
            self._warned.add(text)
            self._screen.say(f"warning: {text}")


def _sample_command(sample: Sample) -> dict[str, Any]:
    return {"type": "resource.sample", **asdict(sample)}


def _own_line(level: str, text: str) -> dict[str, Any]:
    return {"type": "log.append", "stream": "sojourn", "level": level, "text": text}


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
