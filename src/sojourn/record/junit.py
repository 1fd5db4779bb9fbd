"""JUnit XML files of any test runner, read as results while the runner writes them.

Runners write a file a suite when it has ended, write one file that grows, or write one file again and again. So a file is
read on from where it was left, if what stood before is still there, and otherwise from its beginning; a case that was taken
from it is not taken twice, unless its outcome is another now.

The files are foreign: they are parsed piece by piece within fixed limits, and a document type declaration, the only place
where XML defines entities, is refused.
"""

import glob
import math
import os
import stat
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any
from xml.parsers import expat

from attrs import define, field, frozen

FILE_BYTES_MAX = 64 * 1024 * 1024
FILES_MAX = 10_000
CASE_ID_BYTES_MAX = 1024
MESSAGE_BYTES_MAX = 4 * 1024
DETAILS_BYTES_MAX = 60 * 1024
_READ_BYTES = 64 * 1024
# So much of what was read last must still stand there, or the file is another one.
_TAIL_BYTES = 64

_OUTCOMES = {"skipped": "skipped", "failure": "failed", "error": "error"}
_RANKS = ("passed", "skipped", "xfailed", "failed", "error")
_NOT_RUN = {"notrun", "skipped", "disabled", "suppressed"}


class _Refused(Exception):
    """Raised by a handler, to stop the parser."""


@define
class JunitCase:
    """A `testcase` element. `case_id` is `classname.name`."""

    case_id: str
    outcome: str = "passed"
    duration_s: float = 0.0
    message: str | None = None
    details: str | None = None

    def command(self, case_id: str) -> dict[str, Any]:
        """The command that records it under an id of its own."""
        fields = {"message": self.message, "details": self.details}
        return {
            "type": "result.record",
            "case_id": case_id,
            "outcome": self.outcome,
            "duration_s": self.duration_s,
            **{name: value for name, value in fields.items() if value is not None},
        }


class JunitParser:
    """Parses one document in pieces. Memory is bounded by one case, whatever the document holds beside.

    Attributes:
        finished: whether the root element is closed.
        trouble: why nothing further is read, or None.
    """

    def __init__(self) -> None:
        self.finished = False
        self.trouble: str | None = None
        self._cases: list[JunitCase] = []
        self._case: JunitCase | None = None
        self._depth = 0
        self._case_depth = 0
        self._kind: str | None = None
        self._message = ""
        self._text: list[str] = []
        self._text_left = 0
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.StartDoctypeDeclHandler = self._doctype

    def feed(self, data: bytes) -> list[JunitCase]:
        """The cases that end in `data`, up to the first mistake; there are none after one."""
        if self.trouble is None:
            try:
                self._parser.Parse(data, False)
            except (expat.ExpatError, _Refused) as error:
                self.trouble = str(error)
        taken, self._cases = self._cases, []
        return taken

    def _doctype(self, *_: Any) -> None:
        raise _Refused("it has a document type declaration, which may define entities and is refused")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        name = name.rpartition(":")[2]
        if self._case is None:
            if name == "testcase":
                self._case, self._case_depth = _case(attributes), self._depth
        elif self._depth == self._case_depth + 1 and name in _OUTCOMES:
            self._kind = name
            if name == "skipped" and attributes.get("type") == "pytest.xfail":
                self._kind = "xfailed"
            self._message = attributes.get("message", "")
            self._text, self._text_left = [], DETAILS_BYTES_MAX

    def _end(self, _: str) -> None:
        if self._case is not None:
            if self._kind is not None and self._depth == self._case_depth + 1:
                self._fold(self._case, _OUTCOMES.get(self._kind, self._kind), "".join(self._text).strip())
                self._kind = None
            elif self._depth == self._case_depth:
                self._cases.append(self._case)
                self._case = None
        self._depth -= 1
        self.finished = self._depth == 0

    def _fold(self, case: JunitCase, outcome: str, text: str) -> None:
        """Of several elements in one case the worst is its outcome, and all their texts are kept."""
        if _RANKS.index(outcome) >= _RANKS.index(case.outcome):
            case.outcome = outcome
            said = self._message.strip() or (text.splitlines() or [""])[0]
            case.message = cut(said, MESSAGE_BYTES_MAX) or None
        if text:
            case.details = cut(
                text if case.details is None else f"{case.details}\n\n{text}", DETAILS_BYTES_MAX
            )

    def _characters(self, text: str) -> None:
        if self._kind is not None and self._text_left > 0:
            self._text.append(text[: self._text_left])
            self._text_left -= len(text)


@frozen
class Stamp:
    """By what a file that was written since is told from one that was not."""

    inode: int
    size_bytes: int
    mtime_ns: int


@define(eq=False)
class JunitFile:
    """One file, as far as it has been read."""

    path: str
    stamp: Stamp | None = None
    trouble: str | None = None
    cases: int = 0
    _parser: JunitParser = field(factory=JunitParser)
    _offset: int = 0
    _tail: bytes = b""
    _counts: dict[str, int] = field(factory=dict)
    # By id and by how often that came in this file: under which id it was recorded, and what.
    _taken: dict[tuple[str, int], tuple[str, JunitCase]] = field(factory=dict)

    def read(self, seen: dict[str, int]) -> list[dict[str, Any]]:
        """The results that are new. `seen` counts the ids of all files together."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self.trouble = str(error.strerror)
            return []
        try:
            return self._read(fd, seen)
        except OSError as error:
            self.trouble = str(error.strerror)
            return []
        finally:
            os.close(fd)

    def _read(self, fd: int, seen: dict[str, int]) -> list[dict[str, Any]]:
        if self._offset > FILE_BYTES_MAX:
            return []
        goes_on = self._parser.trouble is None and self._tail_stands(fd)
        if not goes_on:
            self._begin()
        cases = self._parse(fd)
        if (
            goes_on and self._parser.trouble is not None
        ):  # what looked like more of the same is another document
            self._begin()
            cases += self._parse(fd)
        self.trouble = self._parser.trouble
        if self._offset > FILE_BYTES_MAX:
            self.trouble = f"it is longer than {FILE_BYTES_MAX:,} bytes"
        return [command for case in cases if (command := self._take(*case, seen)) is not None]

    def _tail_stands(self, fd: int) -> bool:
        return os.pread(fd, len(self._tail), self._offset - len(self._tail)) == self._tail

    def _begin(self) -> None:
        self._parser = JunitParser()
        self._offset, self._tail, self._counts = 0, b"", {}

    def _parse(self, fd: int) -> list[tuple[int, JunitCase]]:
        """The further cases, each with how often its id has come in this document."""
        found = []
        while self._offset <= FILE_BYTES_MAX and (data := os.pread(fd, _READ_BYTES, self._offset)):
            cases = self._parser.feed(data)
            if self._parser.trouble is None:
                self._offset += len(data)
                self._tail = (self._tail + data)[-_TAIL_BYTES:]
            for case in cases:
                number = self._counts[case.case_id] = self._counts.get(case.case_id, 0) + 1
                found.append((number, case))
            if self._parser.trouble is not None:
                break
        return found

    def _take(self, number: int, case: JunitCase, seen: dict[str, int]) -> dict[str, Any] | None:
        before = self._taken.get((case.case_id, number))
        if before is not None:
            case_id, recorded = before
            if recorded == case:
                return None
        else:
            repeats = seen[case.case_id] = seen.get(case.case_id, 0) + 1
            case_id = case.case_id if repeats == 1 else f"{case.case_id}#{repeats}"
            self.cases += 1
        self._taken[(case.case_id, number)] = (case_id, case)
        return case.command(case_id)

    def end(self) -> None:
        """No more is written: what is half now stays so."""
        if self.trouble is None and not self._parser.finished:
            self.trouble = "it ends in the middle"


class JunitFiles:
    """All files that match some patterns, but for those that lay there at the beginning and were not written since.

    Not to be used by two threads at once.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = patterns
        self._files: dict[str, JunitFile] = {}
        self._seen: dict[str, int] = {}
        self._too_many = False
        self._stale = {path: stamp for path in self._matching() if (stamp := _stamp(path)) is not None}

    def look(self) -> list[dict[str, Any]]:
        """Commands for the results that have come since the last look."""
        commands: list[dict[str, Any]] = []
        for path in self._matching():
            stamp = _stamp(path)
            if stamp is None or stamp == self._stale.get(path):
                continue
            file = self._files.get(path)
            if file is None:
                file = self._files[path] = JunitFile(path)
            if stamp != file.stamp:
                file.stamp = stamp
                commands += file.read(self._seen)
        return commands

    def finish(self) -> tuple[list[dict[str, Any]], list[str]]:
        """The last look: the results that are left, and what could not be read."""
        commands = self.look()
        said = []
        for file in self._files.values():
            file.end()
            if file.trouble is not None:
                said.append(
                    f"{file.path} could be read in part only: {file.trouble}; {file.cases:,} cases were taken"
                )
        if self._too_many:
            said.append(
                f"more than {FILES_MAX:,} files match {' '.join(self._patterns)}; the others were not read"
            )
        if not self._files:
            said.append(f"no file that matches {' '.join(self._patterns)} was written")
        return commands, said

    def _matching(self) -> Iterable[str]:
        found: dict[str, None] = {}
        for pattern in self._patterns:
            for path in islice(glob.iglob(pattern, recursive=True, include_hidden=True), FILES_MAX + 1):
                found[path] = None
                if len(found) > FILES_MAX:
                    self._too_many = True
                    return list(found)[:FILES_MAX]
        return sorted(found)


def cut(text: str, bytes_max: int) -> str:
    """The text, its end left out where it is too long."""
    data = text.encode("utf-8", "replace")
    if len(data) <= bytes_max:
        return data.decode()
    note = "\n[... cut]"
    return data[: bytes_max - len(note)].decode("utf-8", "ignore") + note


def _stamp(path: str) -> Stamp | None:
    """None for what is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return Stamp(found.st_ino, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def _case(attributes: dict[str, str]) -> JunitCase:
    names = [attributes.get("classname", "").strip(), attributes.get("name", "").strip()]
    case_id = ".".join(name for name in names if name) or "unnamed"
    # With room for `#2`.
    case = JunitCase(cut(case_id, CASE_ID_BYTES_MAX - 8), duration_s=_duration_s(attributes.get("time", "")))
    if {attributes.get("status", "").lower(), attributes.get("result", "").lower()} & _NOT_RUN:
        case.outcome = "skipped"
    return case


def _duration_s(text: str) -> float:
    """`1,234.5` is how some runners write it; what is no time counts as none."""
    try:
        duration_s = float(text.replace(",", ""))
    except ValueError:
        return 0.0
    return duration_s if math.isfinite(duration_s) and duration_s > 0 else 0.0
