"""The command's start: all that it needs of us, and nothing that has to wait for a server or for our larger libraries.

What it needs is a folder in the spool, a socket for its pytest, and somewhere to write to. The session has its id already,
because the id follows from the creation (decision 0007); the creation is the first thing to deliver.
"""

import errno
import os
import signal
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from attrs import field, frozen

from ..actors.session.ids import session_id_for
from ..launch import Launch, ServerNotStarted, launch_if_needed
from ..runtime.paths import SOCKET_PATH_BYTES_MAX, runtime_dir
from .inject import reporting_environment, write_plugin
from .junit import JunitFiles
from .limit import timer_commands
from .options import EXIT_NOT_EXECUTABLE, RecordError, RecordOptions
from .process import Interrupts, OutputSource, RecordedCommand
from .progress import Display
from .spool import Outbox, remember_command, spool_dir

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A folder that is full today is a good address all the same, and the spool finds room elsewhere.
_FULL = (errno.ENOSPC, errno.EDQUOT)


@frozen(kw_only=True)
class Resumption:
    """The session that goes on, as it was found. `results` is its state's: small documents by case id; `has_limit`: an
    earlier attempt has left its time limit with it."""

    session_id: str
    plan: str
    status: str
    attempt: int
    results: dict[str, dict[str, Any]]
    has_limit: bool = False

    def commands(self) -> list[dict[str, Any]]:
        """What begins the attempt: the session rests, where it still counts as running, and goes on."""
        said = f"attempt {self.attempt}: {len(self.results):,} cases have a result already"
        line = {"type": "log.append", "stream": "sojourn", "level": "info", "text": said}
        pause = {"type": "session.pause", "reason": "its reporter was gone"}
        match self.status:
            case "created":
                return [{"type": "session.start"}, line]
            case "paused":
                return [{"type": "session.resume"}, line]
            case _:
                return [pause, {"type": "session.resume"}, line]


@frozen(kw_only=True)
class Beginning:
    """A command that runs, and what we hold of it.

    Attributes:
        listener: where its pytest reports; None where no socket could be made.
        started: when it was started, on the monotonic clock.
        launched: the data folder's server, where we have just started it.
    """

    options: RecordOptions
    outbox: Outbox
    plan: str
    listener: socket.socket | None
    socket_path: Path
    sources: tuple[OutputSource, ...]
    command: RecordedCommand
    interrupts: Interrupts
    started: float
    started_at: datetime
    launched: Launch | None
    resumption: Resumption | None
    junit: JunitFiles | None
    warnings: tuple[str, ...] = field(factory=tuple)

    @property
    def session_id(self) -> str:
        """The session's id, whether or not a server has heard of it."""
        return self.outbox.session_id


def begin(options: RecordOptions, screen: Display, resumption: Resumption | None = None) -> Beginning:
    """Start the command, and then, where none listens, the data folder's server.

    From here on signals that ask us to end go to the command, until the recorder takes them over.

    Raises:
        RecordError: it was not started: the data folder cannot be used, or the command not be executed.
    """
    if options.server is None:
        _check_data_dir(options.data_dir)
    warnings: list[str] = []
    junit = JunitFiles(options.junit) if options.junit else None
    outbox = _outbox(options, resumption)
    try:
        socket_path = _socket_path(outbox)
        listener = _listen(socket_path, warnings)
        if os.pathsep in str(outbox.folder):
            warnings.append(
                f"{outbox.folder} has a {os.pathsep!r} in its path: pytest cannot report its tests from there"
            )
        outbox.append([{"type": "session.start"}] if resumption is None else resumption.commands())
        has_limit = resumption is not None and resumption.has_limit
        if limits := timer_commands(options.time_limit_s, has_timer=has_limit):
            outbox.append(limits)
        environment = reporting_environment(
            os.environ,
            folder=outbox.folder / "inject",
            socket_path=socket_path,
            spill_path=outbox.folder / "reporter.spill",
            recorded_path=outbox.folder / "recorded.json" if resumption is not None else None,
        )
        interrupts = Interrupts()
        for number in ENDING_SIGNALS:
            signal.signal(number, lambda number, _: interrupts.take(number))
        command, sources = _start(options, screen, environment)
        started, started_at = time.monotonic(), datetime.now(UTC)
        interrupts.attach(command)
    except (OSError, RecordError) as error:
        outbox.remove()
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"{outbox.folder} cannot be used ({error}); name another with --data") from error
    try:
        remember_command(outbox.folder, command.pid)
    except OSError as error:
        warnings.append(f"{outbox.folder} cannot be written ({error.strerror})")
    return Beginning(
        options=options,
        outbox=outbox,
        plan=resumption.plan if resumption is not None else options.plan_or_default,
        listener=listener,
        socket_path=socket_path,
        sources=sources,
        command=command,
        interrupts=interrupts,
        started=started,
        started_at=started_at,
        launched=_launched(options),
        resumption=resumption,
        junit=junit,
        warnings=tuple(warnings),
    )


def _check_data_dir(data_dir: Path) -> None:
    try:
        data_dir.resolve().mkdir(parents=True, exist_ok=True)
        if not os.access(data_dir, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "it cannot be written")
    except OSError as error:
        if error.errno not in _FULL:
            raise RecordError(
                f"the data folder {data_dir.resolve()} cannot be used ({error.strerror}); "
                "name another with --data, or a running server with --server URL"
            ) from error


def _outbox(options: RecordOptions, resumption: Resumption | None) -> Outbox:
    creation = None
    if resumption is None:
        creation = options.creation()
        session_id = session_id_for(creation["command_id"], creation["user_id"])
    else:
        session_id = resumption.session_id

    def fill(folder: Path) -> None:
        write_plugin(folder / "inject")
        header = {"spill": {"session_id": session_id}}
        (folder / "reporter.spill").write_bytes(msgspec.json.encode(header) + b"\n")
        if resumption is not None:
            (folder / "recorded.json").write_bytes(msgspec.json.encode(list(resumption.results)))

    target = options.server.rstrip("/") if options.server is not None else ""
    try:
        spool = spool_dir(options.data_dir.resolve())
        return Outbox.create(spool, session_id, target, creation=creation, fill=fill)
    except OSError as error:
        raise RecordError(
            f"there is no room for what is to be delivered, nor in a temporary folder ({error}); "
            "make some, or name another folder with --data"
        ) from error


def _socket_path(outbox: Outbox) -> Path:
    """In the recording's folder, or where that path is too long for a socket, in the runtime folder."""
    inside = outbox.folder / "reporter.sock"
    if len(os.fsencode(inside)) <= SOCKET_PATH_BYTES_MAX:
        return inside
    return runtime_dir() / f"{os.urandom(8).hex()}.report.sock"


def _listen(path: Path, warnings: list[str]) -> socket.socket | None:
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(os.fspath(path))
        path.chmod(0o600)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        warnings.append(f"{path} cannot be used ({error.strerror}): tests show when pytest has ended")
        return None
    return listener


def _start(
    options: RecordOptions, screen: Display, environment: dict[str, str]
) -> tuple[RecordedCommand, tuple[OutputSource, ...]]:
    sources: list[OutputSource] = []
    writing: list[int] = []
    try:
        for stream, own in (("stdout", sys.stdout), ("stderr", sys.stderr)):
            fd = own.fileno()
            is_terminal = os.isatty(fd)
            source, far = (
                OutputSource.terminal(fd, screen.rows) if is_terminal else OutputSource.memory(stream)
            )
            sources.append(source)
            writing.append(far)
        command = RecordedCommand.start(
            options.command, stdout_fd=writing[0], stderr_fd=writing[1], environment=environment
        )
    except OSError as error:
        for source in sources:
            source.close()
        said = f"{options.command[0]} cannot be run ({error.strerror})"
        raise RecordError(said, EXIT_NOT_EXECUTABLE) from error
    finally:
        for far in writing:
            os.close(far)
    return command, tuple(sources)


def _launched(options: RecordOptions) -> Launch | None:
    if options.server is not None:
        return None
    try:
        return launch_if_needed(options.data_dir, options.config)
    except (ServerNotStarted, OSError):  # the delivery tries again, and says what is wrong
        return None
