"""The pytest plugin that `sojourn record` puts into whatever environment the command's pytest runs in.

It tells the recorder each case's outcome over a unix socket (docs/protocol.md, last section). It must not hurt the
tests, whatever happens to the recorder: nothing raises into pytest, nothing waits but for a bounded time at exit, and
there is no thread, because a thread makes `os.fork()` in a test warn (Python 3.12) and shows in `threading.enumerate()`.
The socket is written and read without blocking whenever pytest calls a hook.

Python 3.8, the standard library and pytest >= 7: this file is read by interpreters that have nothing of ours.
"""

# ruff: noqa: BLE001, FURB188, UP017  -- an error of ours must not reach the tests; the others are newer than Python 3.8

from __future__ import annotations

import errno
import fcntl
import functools
import json
import os
import platform
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Generator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

SOCKET_VARIABLE = "SOJOURN_REPORT_SOCKET"
SPILL_VARIABLE = "SOJOURN_REPORT_SPILL"
RECORDED_VARIABLE = "SOJOURN_REPORT_RECORDED"
VARIABLES = (SOCKET_VARIABLE, SPILL_VARIABLE, RECORDED_VARIABLE)

# About 20,000 results: what waits while the recorder is stopped or slow. Beyond, it goes to the spill file.
QUEUE_BYTES_MAX = 8 * 1024 * 1024
SPILL_BYTES_MAX = 64 * 1024 * 1024
EXIT_WAIT_S = 5.0
PROGRESS_INTERVAL_S = 0.5
CASE_ID_BYTES_MAX = 1024
MESSAGE_BYTES_MAX = 4 * 1024
# Below the wire's 64 KiB, because a cut leaves a note.
DETAILS_BYTES_MAX = 60 * 1024

# From best to worst: of the phases of one test, the worst outcome is the case's.
RANKS = {"passed": 0, "xpassed": 1, "skipped": 2, "xfailed": 3, "failed": 4, "error": 5}

# Tests replace `socket.socket` to forbid the network; ours is the one that stood here at the start.
_Socket = socket.socket


class Channel:
    """Sends commands in order, each acknowledged by its number, and never blocks but in `close`.

    What is not acknowledged is sent again on a new connection. When nobody listens any more, or more waits than the queue
    holds, everything that is not acknowledged and all that follows goes to the spill file, and the socket is not used again.
    """

    def __init__(self, socket_path: str, spill_path: str | None) -> None:
        self.source = "pytest-" + os.urandom(8).hex()
        self._socket_path = socket_path
        self._spill_path = spill_path
        self._spill_fd: int | None = None
        self._given_up = False
        self._lost = 0
        self._socket: socket.socket | None = None
        self._session_id: str | None = None
        self._n = 0
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._waiting_bytes = 0
        self._out = bytearray()
        self._in = bytearray()
        self._pid = os.getpid()
        self._connect()

    def put(self, command: dict[str, Any]) -> None:
        """Number the command and send it as soon as that is possible."""
        if os.getpid() != self._pid:  # a forked child reports nothing
            return
        if self._given_up:
            self._lost += 1
            return
        command["source"] = self.source
        command["n"] = self._n + 1
        line = json.dumps(command).encode() + b"\n"
        self._n += 1
        self._waiting.append((self._n, line))
        self._waiting_bytes += len(line)
        if self._spill_fd is None:
            # Not only once the recorder has answered: no hook may come for hours, and the process may be killed.
            if self._socket is not None:
                self._out += line
            self._pump()
        if self._spill_fd is not None or self._waiting_bytes > QUEUE_BYTES_MAX:
            self._spill()

    def close(self) -> None:
        """Wait at most EXIT_WAIT_S for what is not acknowledged; what is left then goes to the spill file."""
        if os.getpid() != self._pid:
            return
        deadline = time.monotonic() + EXIT_WAIT_S
        while self._waiting and self._spill_fd is None and not self._given_up:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                self._spill()
                break
            self._pump()
            if self._socket is not None and self._waiting:
                poll = select.poll()
                poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._out else 0))
                poll.poll(min(left_s, 0.2) * 1000)
        self._disconnect()
        if self._spill_fd is not None:
            if self._lost:
                self._write_header(self._spill_fd, lost=self._lost)
            os.close(self._spill_fd)
            self._spill_fd = None
        self._given_up = True

    def _pump(self) -> None:
        """Send and receive what can be without waiting."""
        for _ in range(2):  # a broken connection is made anew once
            if self._socket is None:
                self._connect()
            if self._socket is None:
                return
            try:
                self._receive(self._socket)
                while self._out:
                    # A test may have set SIGPIPE to its default, which would end the process.
                    sent = self._socket.send(self._out[: 256 * 1024], socket.MSG_NOSIGNAL)
                    del self._out[:sent]
                return
            except BlockingIOError:
                return
            except OSError:
                self._disconnect()

    def _receive(self, connection: socket.socket) -> None:
        ended = False
        while not ended:
            try:
                data = connection.recv(64 * 1024)
            except BlockingIOError:
                break
            self._in += data
            ended = not data
        *lines, rest = bytes(self._in).split(b"\n")
        self._in = bytearray(rest)
        for line in lines:
            self._take(json.loads(line))
        if ended:  # after what it had still acknowledged
            raise ConnectionResetError(errno.ECONNRESET, "the recorder closed the connection")

    def _take(self, said: dict[str, Any]) -> None:
        if "welcome" in said:
            self._session_id = said["welcome"]["session_id"]
        elif said.get("source") == self.source:
            while self._waiting and self._waiting[0][0] <= said["n"]:
                self._waiting_bytes -= len(self._waiting.popleft()[1])

    def _connect(self) -> None:
        connection = _Socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            connection.connect(self._socket_path)
        except BlockingIOError:  # the recorder's backlog is full: the next hook tries again
            connection.close()
        except OSError:  # nobody listens, and a recorder never comes back to its socket
            connection.close()
            self._spill()
        else:
            versions = {"pytest": pytest.__version__, "python": platform.python_version()}
            hello = {"hello": dict(versions, reporter="pytest", source=self.source)}
            self._out = bytearray(json.dumps(hello).encode() + b"\n")
            for _, waiting in self._waiting:
                self._out += waiting
            self._socket = connection

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._out.clear()
        self._in.clear()

    def _spill(self) -> None:
        """Move what waits to the spill file."""
        try:
            if self._spill_fd is None:
                self._disconnect()
                self._spill_fd = self._open_spill()
            room = SPILL_BYTES_MAX - os.fstat(self._spill_fd).st_size
            while self._waiting:
                line = self._waiting[0][1]
                room -= len(line)
                if room < 0 or os.write(self._spill_fd, line) < len(line):
                    raise OSError(errno.EFBIG, "the spill file is full")
                self._waiting.popleft()
        except OSError:
            # Numbers have no gaps, so after a line that is lost none can be taken: nothing more is kept.
            self._given_up = True
            self._lost = len(self._waiting)
            self._waiting.clear()

    def _write_header(self, fd: int, **more: int) -> None:
        header = {"spill": dict(more, session_id=self._session_id)}
        try:
            os.write(fd, json.dumps(header).encode() + b"\n")
        except OSError:
            return  # it is told as far as there is room

    def _open_spill(self) -> int:
        if self._spill_path is None:
            raise OSError(errno.ENOENT, "no spill file is named")
        # Several processes may share the file; a shared lock says that it is still written to. Where a deliverer
        # holds it (or has just removed it), we take a file of our own beside it.
        for path in (self._spill_path, f"{self._spill_path}.{self.source}"):
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                if os.fstat(fd).st_nlink:
                    if not os.fstat(fd).st_size and self._session_id is not None:
                        self._write_header(fd)
                    return fd
            except BlockingIOError:
                pass
            os.close(fd)
        raise OSError(errno.EAGAIN, "the spill file is being delivered")


class Naming:
    """What is done in the process that has the items, an xdist worker or else the controller: the case's id is written
    into every report, and cases that are recorded already are deselected.
    """

    def __init__(self, recorded: list[str]) -> None:
        self._recorded = frozenset(recorded)
        # Of the item that runs: each of its three phases makes a report.
        self._item: pytest.Item | None = None
        self._item_id = ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        try:
            dropped = self._dropped(items) if self._recorded else []
        except Exception:
            return
        if dropped:
            gone = set(map(id, dropped))
            items[:] = [item for item in items if id(item) not in gone]
            config.hook.pytest_deselected(items=dropped)

    def _dropped(self, items: list[pytest.Item]) -> list[pytest.Item]:
        seen: dict[str, int] = {}
        dropped = []
        for item in items:
            if _numbered(_id_of_node(item), seen) in self._recorded:
                dropped.append(item)
        return dropped

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput["sojourn_recorded"] = list(self._recorded)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, Any, None]:
        outcome = yield
        if outcome.excinfo is None:
            self._name(outcome.get_result(), item)

    def _name(self, report: Any, item: pytest.Item) -> None:
        if item is self._item:
            report.sojourn_case = self._item_id
        elif (name := _attach(report, item)) is not None:
            self._item, self._item_id = item, name

    @pytest.hookimpl(hookwrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Generator[None, Any, None]:
        outcome = yield
        if outcome.excinfo is None and not outcome.get_result().passed:
            _attach(outcome.get_result(), collector)


class Case:
    """What is known of a test whose last phase has not been reported."""

    def __init__(self) -> None:
        self.case_id = ""
        self.outcome: str | None = None
        self.message: str | None = None
        self.details: list[str] = []
        self.duration_s = 0.0
        self.started_at: str | None = None

    def add(self, report: Any, outcome: str) -> None:
        """Fold one phase in."""
        if self.outcome is None or RANKS[outcome] > RANKS[self.outcome]:
            self.outcome = outcome
            self.message = _message(report)
        if report.failed:
            self.details.append(str(report.longrepr))
        start = getattr(report, "start", 0.0)
        if self.started_at is None and start:
            moment = datetime.fromtimestamp(start, timezone.utc)
            self.started_at = moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


class Reporter:
    """Folds pytest's reports into one result a case."""

    def __init__(self, channel: Channel, *, copies: int, recorded: list[str]) -> None:
        self._broken = False
        self._channel = channel
        self._copies = copies
        self._open: dict[tuple[str, Any], Case] = {}
        self._seen: dict[str, int] = {}
        # A module that could not be collected is tried again; a test that has a result is not run again.
        tests = [case_id for case_id in recorded if "::" in case_id]
        for case_id in sorted(tests):
            base, _, number = case_id.rpartition("#")
            _numbered(base if number.isdigit() and base in self._seen else case_id, self._seen)
        self._done = len(tests)
        self._not_collected_count = len(
            tests
        )  # cases that are not among the collected items, failed modules too
        self._total: int | None = None
        self._progress_at = 0.0

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if not session.config.getoption("collectonly", False):
            self._guard(self._collected, len(session.items))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self._guard(self._collected, len(ids) * self._copies)

    @pytest.hookimpl(trylast=True)
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            self._guard(self._not_collected, report)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._guard(self._phase_ended, report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        self._guard(self._session_ended)

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        self._guard(self._channel.close)

    def _guard(self, step: Callable[..., None], *args: Any) -> None:
        """An error of ours ends the reporting, not the tests."""
        if not self._broken:
            try:
                step(*args)
            except Exception:
                self._broken = True

    def _collected(self, total: int) -> None:
        self._total = total
        self._report_progress()

    def _not_collected(self, report: Any) -> None:
        """A module that fails, or is skipped, while it is imported counts as a case, as it does in JUnit XML."""
        self._done += 1
        self._not_collected_count += 1
        case = Case()
        case.add(report, "error" if report.failed else "skipped")
        self._record(_case_id(report), case)

    def _phase_ended(self, report: Any) -> None:
        outcome = _phase_outcome(report)
        # Under xdist two workers may run tests of one node id (`--dist each`, `--pyargs`).
        key = (str(report.nodeid), getattr(report, "worker_id", None))
        if report.when == "setup" or key not in self._open:  # a rerun begins with a setup, too
            self._open[key] = Case()
        case = self._open[key]
        if hasattr(report, "context"):  # a subtest: it can fail its case, and does nothing else
            if outcome == "failed":
                case.add(report, outcome)
            return
        case.case_id = _case_id(report)
        case.duration_s += getattr(report, "duration", 0.0)
        if outcome is not None and (outcome != "passed" or report.when == "call"):
            case.add(report, outcome)
        if report.when not in ("setup", "call"):  # teardown, or the report on a worker that crashed
            self._finish(key)

    def _session_ended(self) -> None:
        for key in list(self._open):  # interrupted between two phases
            self._finish(key)
        self._report_progress()

    def _finish(self, key: tuple[str, Any]) -> None:
        case = self._open.pop(key)
        if case.outcome is not None:
            self._done += 1
            self._record(case.case_id, case)
            if time.monotonic() >= self._progress_at:
                self._report_progress()

    def _record(self, case_id: str, case: Case) -> None:
        command = {
            "type": "result.record",
            "case_id": _numbered(case_id, self._seen),
            "outcome": case.outcome,
            "duration_s": round(case.duration_s, 6),
            "started_at": case.started_at,
            "message": None if case.message is None else _cut(case.message, MESSAGE_BYTES_MAX),
            "details": _cut("\n\n".join(case.details), DETAILS_BYTES_MAX) if case.details else None,
        }
        self._channel.put({name: value for name, value in command.items() if value is not None})

    def _report_progress(self) -> None:
        self._progress_at = time.monotonic() + PROGRESS_INTERVAL_S
        if self._total is not None:
            total = self._total + self._not_collected_count
            self._channel.put({"type": "progress.report", "done": self._done, "total": total})


def _phase_outcome(report: Any) -> str | None:
    """The outcome that this phase alone would give, or None (a rerun that comes again)."""
    if report.passed:
        return "xpassed" if hasattr(report, "wasxfail") and report.when == "call" else "passed"
    if report.skipped:
        return "xfailed" if hasattr(report, "wasxfail") else "skipped"
    if report.failed:
        return "failed" if report.when == "call" else "error"
    return None


def _message(report: Any) -> str | None:
    if hasattr(report, "wasxfail"):
        return _without_prefix(str(report.wasxfail), "reason: ") or None
    if report.passed:
        return None
    if isinstance(report.longrepr, tuple):
        return _without_prefix(str(report.longrepr[2]), "Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return str(crash.message)
    lines = str(report.longrepr).strip().splitlines()
    return lines[-1] if lines else None


def _without_prefix(text: str, prefix: str) -> str:
    return text[len(prefix) :] if text.startswith(prefix) else text


def _numbered(case_id: str, seen: dict[str, int]) -> str:
    """The id, with `#2` where it comes for the second time."""
    repeats = seen[case_id] = seen.get(case_id, 0) + 1
    return case_id if repeats == 1 else f"{case_id}#{repeats}"


def _case_id(report: Any) -> str:
    return getattr(report, "sojourn_case", None) or _id_of_nodeid(report.nodeid)


def _attach(report: Any, node: Any) -> str | None:
    """Write the case's id into the report, and return it."""
    try:
        # A plain attribute travels from an xdist worker to its controller with the report.
        report.sojourn_case = name = _id_of_node(node)
    except Exception:
        return None  # the node id names it then
    return name


def _id_of_node(node: Any) -> str:
    """`module.Class::name[param]` of an item; the same without `::name` of a module or class that cannot be collected."""
    module = getattr(node, "module", None) if isinstance(node, pytest.Item) else None
    parts = [module.__name__ if module is not None else _module_name(node)]
    parts += [above.name for above in node.listchain() if isinstance(above, pytest.Class)]
    name = ".".join(parts)
    return _short(name + "::" + node.name if isinstance(node, pytest.Item) else name)


def _module_name(node: Any) -> str:
    """The name under which pytest imports the node's file (rootdir/conftest rules of its default import mode)."""
    path = Path(str(node.path))
    if path.suffix != ".py" and not (path / "__init__.py").is_file():
        return _id_of_nodeid(str(node.nodeid).split("::")[0])
    parts = [] if path.name == "__init__.py" else [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file() and folder.name:
        parts.insert(0, folder.name)
        folder = folder.parent
    if len(parts) == 1 and node.config.getoption("importmode", None) == "importlib":
        return _id_of_nodeid(str(node.nodeid).split("::")[0])
    return ".".join(parts)


def _id_of_nodeid(nodeid: Any) -> str:
    """What a node id tells of the case id, where the node itself is out of reach."""
    path, *names = str(nodeid).split("[")[0].split("::")
    parameters = str(nodeid)[len(str(nodeid).split("[")[0]) :]
    module = (path[:-3] if path.endswith(".py") else path).replace("/", ".")
    if not names:
        return _short(module + parameters)
    return _short(".".join([module, *names[:-1]]) + "::" + names[-1] + parameters)


def _short(case_id: str) -> str:
    """At most CASE_ID_BYTES_MAX bytes with room for `#2`; what is cut is replaced by its checksum, so that ids stay apart."""
    data = case_id.encode("utf-8", "replace")
    if len(data) <= CASE_ID_BYTES_MAX - 8:
        return data.decode()
    import hashlib

    digest = hashlib.sha256(case_id.encode("utf-8", "replace")).hexdigest()[:16]
    return data[: CASE_ID_BYTES_MAX - 40].decode("utf-8", "ignore") + "~" + digest


def _cut(text: str, bytes_max: int) -> str:
    """The text without lone surrogates, its middle left out where it is too long: the ends say most."""
    data = text.encode("utf-8", "replace")
    if len(data) <= bytes_max:
        return data.decode()
    note = f"\n[... {len(data) - bytes_max} bytes left out ...]\n"
    half = (bytes_max - len(note)) // 2
    return data[:half].decode("utf-8", "ignore") + note + data[-half:].decode("utf-8", "ignore")


def pytest_configure(config: pytest.Config) -> None:
    """Report, if the recorder said where to. What runs below this pytest finds no socket and stays silent."""
    try:
        if getattr(pytest, "version_tuple", (0,)) < (7,):
            return
        if hasattr(config, "workerinput"):  # an xdist worker: its controller reports
            recorded = config.workerinput.get("sojourn_recorded", [])
            config.pluginmanager.register(Naming(recorded), "sojourn-naming")
            return
        variables = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
        if SOCKET_VARIABLE not in variables:
            return
        # A process that calls `pytest.main` again reports again.
        config.add_cleanup(functools.partial(os.environ.update, variables))
        recorded = _recorded(variables.get(RECORDED_VARIABLE))
        each = config.getoption("dist", "no") == "each"
        copies = len(config.getoption("tx", None) or [None]) if each else 1
        channel = Channel(variables[SOCKET_VARIABLE], variables.get(SPILL_VARIABLE))
        config.pluginmanager.register(Naming(recorded), "sojourn-naming")
        config.pluginmanager.register(Reporter(channel, copies=copies, recorded=recorded), "sojourn-reporter")
    except Exception:
        return


def _recorded(path: str | None) -> list[str]:
    """The cases of the session that have a result. Where the list cannot be read, all run."""
    try:
        with open(path or os.devnull, encoding="utf-8") as file:
            return [str(case_id) for case_id in json.load(file)]
    except (OSError, ValueError):
        return []
