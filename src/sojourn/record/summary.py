"""What is said at the end: on stderr, and as one JSON document for `--json`."""

import shlex
from pathlib import Path
from typing import Any

import msgspec
from attrs import frozen

from .options import RecordOptions
from .outcome import Verdict
from .progress import Display
from .sampler import Sample
from .spool import OutboxStatistics
from .tally import Tally, duration_text


@frozen(kw_only=True)
class Summary:
    """A finished recording. `undelivered_in` is the spool folder that is left, or None where all was delivered."""

    session_id: str
    plan: str
    attempt: int
    verdict: Verdict
    started_at: str
    ended_at: str
    duration_s: float
    tally: Tally
    resources: Sample
    rss_peak_bytes: int
    outbox: OutboxStatistics
    refused: int
    refused_path: Path
    undelivered_in: Path | None
    undelivered_because: str | None
    server: str
    previous_session_id: str | None

    def tell(self, options: RecordOptions, screen: Display) -> None:
        """To the person, and to the file of `--json`."""
        for line in self.lines(options):
            screen.say(line)
        if options.json_path is not None:
            try:
                write_document(options.json_path, self.document(options))
            except OSError as error:
                screen.say(f"warning: {options.json_path} could not be written ({error.strerror})")

    def document(self, options: RecordOptions) -> dict[str, Any]:
        """The document of `--json`."""
        return {
            "session_id": self.session_id,
            "status": self.verdict.status,
            "outcome": self.verdict.outcome,
            "reason": self.verdict.reason,
            "exit_code": self.verdict.recorder_exit_code,
            "command": list(options.command),
            "command_exit_code": self.verdict.exit_code,
            "plan": self.plan,
            "title": options.title_or_default,
            "attempt": self.attempt,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "duration_s": self.duration_s,
            "results": self.tally.counts,
            "failed_cases": list(self.tally.failed_cases),
            "logs": {"lines": self.tally.log_lines},
            "resources": {
                "cpu_s": self.resources.cpu_s,
                "rss_peak_bytes": self.rss_peak_bytes,
                "read_bytes": self.resources.read_bytes,
                "written_bytes": self.resources.written_bytes,
            },
            "delivered": self.outbox.acknowledged - self.refused,
            "undelivered": self.outbox.appended - self.outbox.acknowledged,
            "refused": self.refused,
            "lost": self.tally.lost.total(),
            "spool": str(self.undelivered_in) if self.undelivered_in is not None else None,
            "server": self.server,
            "data_dir": str(options.data_dir.resolve()),
        }

    def lines(self, options: RecordOptions) -> list[str]:
        """What a person reads."""
        verdict, tally = self.verdict, self.tally
        reason = f" ({verdict.reason})" if verdict.reason is not None else f", exit code {verdict.exit_code}"
        counts = f": {tally.counts_text()}" if tally.cases else ""
        said = [f"{verdict.outcome} in {duration_text(self.duration_s)}{counts}{reason}"]
        for case_id, message in tally.failed_cases.items():
            said.append(f"  {case_id}: {first_line(message)}")
        more = tally.failures - len(tally.failed_cases)
        if more > 0:
            said.append(f"  and {more:,} more")
        said += self._warnings(options)
        if self.undelivered_in is not None:
            return said
        if self.previous_session_id is not None:
            pair = f"{self.previous_session_id} {self.session_id}"
            said.append(f"compare it with the one before: sojourn compare {pair}{options.where()}")
        else:
            said.append(f"show it: sojourn show {self.session_id}{options.where()}")
            said.append(f"compare it with another: sojourn compare OTHER {self.session_id}{options.where()}")
        return said

    def _warnings(self, options: RecordOptions) -> list[str]:
        warnings = []
        if self.undelivered_in is not None:
            left = self.outbox.appended - self.outbox.acknowledged
            warnings.append(
                f"warning: {left:,} commands are not delivered ({self.undelivered_because or 'no time was left'})"
            )
            warnings.append(f"they are kept in {self.undelivered_in}; {self._how_to_deliver(options)}")
        if self.refused:
            warnings.append(
                f"warning: the server refused {self.refused:,} commands; they and the reasons are in {self.refused_path}"
            )
        if self.tally.lost.total():
            warnings.append(
                f"warning: {self.tally.lost_text()} are not recorded: there was no room for them to wait; make some in "
                f"{options.data_dir}"
            )
        return warnings

    def _how_to_deliver(self, options: RecordOptions) -> str:
        data_dir = options.data_dir.resolve()
        data = f" --data {shlex.quote(str(data_dir))}"
        if options.server is not None:
            how = f"the next `sojourn record --server {options.server}{data}` delivers them"
        else:
            how = f"`sojourn serve{data}`, or the next `sojourn record` there, delivers them"
        assert self.undelivered_in is not None
        if data_dir in self.undelivered_in.parents:
            return how
        return f"move that folder into {data_dir / 'spool'}, and {how}"


def write_document(path: Path, document: dict[str, Any]) -> None:
    """Write the one JSON document. Raises OSError."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


def first_line(text: str, characters_max: int = 160) -> str:
    """The first line of a message, shortened."""
    line = (text.strip().splitlines() or [""])[0]
    return line if len(line) <= characters_max else line[: characters_max - 3] + "..."
