"""The way into a recording. It imports little, so that the server, where one must be started, starts meanwhile."""

import json
import sys

from ..launch import Launch, ServerNotStarted, launch_if_needed
from .options import RecordError, RecordOptions


def main(options: RecordOptions) -> int:
    """Run the command as a session: the exit code of `sojourn record`. A failure of ours is told on stderr."""
    try:
        options.check()
        launched = _launch(options)
        from .recorder import record  # half a second of imports, in which the server starts

        return record(options, launched)
    except RecordError as error:
        print(f"sojourn: error: {error}. The command was not run", file=sys.stderr, flush=True)
        if options.json_path is not None:
            failure = {"error": {"code": error.code, "detail": str(error)}, "exit_code": error.exit_code}
            try:
                options.json_path.write_text(json.dumps(failure, indent=2) + "\n", "utf-8")
            except OSError as problem:
                print(f"sojourn: warning: {options.json_path}: {problem.strerror}", file=sys.stderr)
        return error.exit_code


def _launch(options: RecordOptions) -> Launch | None:
    if options.server is not None:
        return None
    try:
        return launch_if_needed(options.data_dir)
    except ServerNotStarted as error:
        raise RecordError(str(error)) from error
