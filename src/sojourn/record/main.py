"""The way into a recording. It imports little, so that the command and, where one is needed, the server start first."""

import json
import signal
import sys
from pathlib import Path

from .begin import Resumption, begin
from .options import RecordError, RecordOptions
from .progress import display


def main(options: RecordOptions) -> int:
    """Run the command as a session: the exit code of `sojourn record`. A failure of ours is told on stderr."""
    try:
        options.check()
        resumption = _resumption(options)
        screen = display()
        try:
            beginning = begin(options, screen, resumption)
            from .recorder import record  # a third of a second of imports, in which the command runs already

            summary = record(beginning, screen)
        finally:
            screen.close()
        summary.tell(options, screen)
        return summary.verdict.recorder_exit_code
    except KeyboardInterrupt:  # before the command ran; later it is forwarded
        return 128 + signal.SIGINT
    except RecordError as error:
        return refused(error, options.json_path)


def refused(error: RecordError, json_path: Path | None) -> int:
    """The exit code of a recording that could not begin, which is told on stderr and in the summary's file."""
    print(f"sojourn: error: {error}. The command was not run", file=sys.stderr, flush=True)
    if json_path is not None:
        failure = {"error": {"code": error.code, "detail": str(error)}, "exit_code": error.exit_code}
        try:
            json_path.write_text(json.dumps(failure, indent=2) + "\n", "utf-8")
        except OSError as problem:
            print(f"sojourn: warning: {json_path}: {problem.strerror}", file=sys.stderr)
    return error.exit_code


def _resumption(options: RecordOptions) -> Resumption | None:
    if options.resume is None:
        return None
    from .resume import find_resumption

    return find_resumption(options)
