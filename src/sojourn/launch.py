"""Starting a data folder's server, with as little to import as can be: who starts one does other things meanwhile."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from attrs import frozen

from .actors.errors import SojournError
from .runtime.paths import api_socket_path

IDLE_EXIT_S = 60


class ServerUnreachable(SojournError):
    """Nothing answered. What was sent may or may not have been done; sending it again is safe."""

    code = "unreachable"

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f"{cause}; {remedy}")
        self.cause = cause
        self.remedy = remedy


class ServerNotStarted(ServerUnreachable):
    """The server that we started ended at once, or did not answer in time."""

    code = "not_started"


@frozen
class Launch:
    """A server that was just started, and the file it writes to."""

    process: "subprocess.Popen[bytes]"
    log_path: Path


def is_listening(socket_path: Path) -> bool:
    """Whether a process listens on the socket; a socket file that a dead server left behind does not count. Never waits:
    a process that is stopped, or too busy to accept, listens."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(socket_path))
        except BlockingIOError:  # as many wait to be accepted as may
            return True
        except OSError:
            return False
        return True


def launch_if_needed(data_dir: Path, config: Path | None = None) -> Launch | None:
    """Start a server for the folder where none listens; it is waited for in `find_or_start_server`."""
    return None if is_listening(api_socket_path(data_dir)) else launch(data_dir, config)


def launch(data_dir: Path, config: Path | None = None) -> Launch:
    """Start `sojourn serve` on the folder, out of our terminal and session.

    Args:
        config: the settings file that it reads; None lets it look for one itself, and not in our current folder.

    Raises:
        ServerNotStarted: the data folder cannot be used.
    """
    data_dir = data_dir.resolve()
    # A name of its own until it is the folder's server: two that start at once would mix their words.
    log_path = data_dir / f"serve-{os.getpid()}.log"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        log = log_path.open("wb")
    except OSError as error:
        raise ServerNotStarted(
            f"the data folder {data_dir} cannot be used ({error.strerror})",
            "name another with --data, or a running server with --server URL",
        ) from error
    # -P: what lies in the data folder must not be imported.
    command = [sys.executable, "-P", "-m", "sojourn", "serve", "--data", str(data_dir)]
    if config is not None:
        command += ["--config", str(config.absolute())]
    # A token that we hold is for a server somewhere; this one is reached by nobody but us.
    environment = {name: value for name, value in os.environ.items() if name != "SOJOURN_TOKEN"}
    with log:
        server = subprocess.Popen(
            [*command, "--no-tcp", "--exit-when-idle", str(IDLE_EXIT_S)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=data_dir,
            env=environment,
            start_new_session=True,
        )
    return Launch(server, log_path)
