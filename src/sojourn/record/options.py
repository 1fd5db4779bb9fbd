"""What is to be recorded, and what follows from the command line."""

import getpass
import os
import platform
import re
import shlex
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit

from attrs import field, frozen

from ..actors.errors import SojournError
from ..runtime.paths import default_data_dir
from .limit import read_limit

TITLE_CHARACTERS_MAX = 120
# Of the command line as it is kept in the environment; the wire takes 4 KiB for a value.
COMMAND_CHARACTERS_MAX = 1_000
_SESSION_ID = re.compile(r"sess_[0-9a-f]{32}\Z")

EXIT_OWN_FAILURE = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127


class RecordError(SojournError):
    """The recording could not begin. The command was not run.

    `exit_code` is 125, or what a shell would give for a command that is not there (127) or cannot be run (126).
    """

    code = "not_recorded"

    def __init__(self, message: str, exit_code: int = EXIT_OWN_FAILURE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@frozen(kw_only=True)
class RecordOptions:
    """What `sojourn record` was asked. None means the default.

    Attributes:
        meta: `key=value` pairs.
        server: the address of a server; None is the one of the data folder.
        data_dir: the data folder; with `server`, where the spool lies.
        json_path: where the summary goes as one JSON document.
        config: the settings file that was read, for a server that is started.
        resume: the id of the session that goes on.
        junit: patterns of JUnit XML files whose cases become results.
        time_limit: how long the command may run, as in `8h`.
    """

    command: tuple[str, ...]
    plan: str | None = None
    title: str | None = None
    meta: tuple[str, ...] = ()
    server: str | None = None
    token: str | None = None
    data_dir: Path = field(factory=default_data_dir)
    json_path: Path | None = None
    user_id: str | None = None
    config: Path | None = None
    resume: str | None = None
    junit: tuple[str, ...] = ()
    time_limit: str | None = None

    @property
    def time_limit_s(self) -> float | None:
        """In seconds. Raises RecordError."""
        try:
            return read_limit(self.time_limit) if self.time_limit is not None else None
        except ValueError as error:
            raise RecordError(f"--time-limit {error}") from error

    @property
    def plan_or_default(self) -> str:
        """The command's first two words, without their folders: the same tests in another checkout compare."""
        words = [PurePath(word).name or word for word in self.command[:2]]
        return self.plan if self.plan is not None else " ".join(words)[:TITLE_CHARACTERS_MAX]

    @property
    def title_or_default(self) -> str:
        """The command line, shortened."""
        return self.title if self.title is not None else _shortened(self.command, TITLE_CHARACTERS_MAX)

    def creation(self) -> dict[str, Any]:
        """The body of `POST /sessions`."""
        return {
            "title": _clean(self.title_or_default),
            "plan": _clean(self.plan_or_default),
            "user_id": _clean(self.user_id if self.user_id is not None else _user()),
            "environment": _environment(self.command),
            "metadata": {_clean(key): _clean(value) for key, value in self._metadata()},
            "command_id": f"record-{os.urandom(8).hex()}",
        }

    def _metadata(self) -> Iterator[tuple[str, str]]:
        for pair in self.meta:
            key, equals, value = pair.partition("=")
            if not key or not equals:
                raise RecordError(f"--meta {pair!r} is no key=value; write it like --meta branch=main")
            yield key, value

    def where(self) -> str:
        """The options that other commands need to find the same sessions, with a leading space where there are any."""
        if self.server is not None:
            return f" --server {shlex.quote(self.server)}"
        if self.data_dir.resolve() != default_data_dir().resolve():
            return f" --data {shlex.quote(str(self.data_dir))}"
        return ""

    def check(self) -> None:
        """Find what would fail later. Raises RecordError."""
        if not self.command:
            raise RecordError("no command is given; write it after --, as in: sojourn record -- pytest")
        dict(self._metadata())
        self.time_limit_s  # noqa: B018 - read for its error
        self._check_server()
        self._check_resume()
        program = self.command[0]
        if shutil.which(program) is None:
            if os.path.exists(program) and os.sep in program:
                remedy = "name a program in it" if os.path.isdir(program) else "make it executable"
                raise RecordError(f"{program} cannot be executed; {remedy}", EXIT_NOT_EXECUTABLE)
            raise RecordError(f"there is no command {program}; check its name and PATH", EXIT_NOT_FOUND)
        if self.json_path is not None:
            try:
                self.json_path.open("ab").close()
            except OSError as error:
                raise RecordError(
                    f"{self.json_path} cannot be written ({error.strerror}); give --json another file"
                ) from error

    def _check_server(self) -> None:
        if self.server is None:
            return
        try:
            parts = urlsplit(self.server)
            named = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            named = None
        if not named:
            raise RecordError(f"{self.server} is no server address; give one such as http://127.0.0.1:8765")

    def _check_resume(self) -> None:
        if self.resume is None:
            return
        if _SESSION_ID.match(self.resume) is None:
            raise RecordError(
                f"{self.resume!r} is no session id; `sojourn ls` shows them, as in sess_0193..."
            )
        given = {"--plan": self.plan, "--title": self.title, "--meta": self.meta, "--user": self.user_id}
        for name, value in given.items():
            if value:
                raise RecordError(
                    f"{name} does not go with --resume; the session keeps what it was created with"
                )


def _clean(text: str) -> str:
    """Without the surrogates by which Python carries bytes that are not UTF-8."""
    return text.encode("utf-8", "replace").decode()


def _shortened(command: tuple[str, ...], characters_max: int) -> str:
    line = _clean(shlex.join(command))
    return line if len(line) <= characters_max else line[: characters_max - 3] + "..."


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in many containers
        return f"uid {os.getuid()}"


def _environment(command: tuple[str, ...]) -> dict[str, str | int]:
    return {
        "command": _shortened(command, COMMAND_CHARACTERS_MAX),
        "cpus": os.cpu_count() or 0,
        "cwd": _clean(os.getcwd()),
        "hostname": socket.gethostname(),
        "machine": platform.machine(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }
