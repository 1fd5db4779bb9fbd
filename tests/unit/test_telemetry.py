"""Logs in both forms, in a process of their own: logging is the process's."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import logging, structlog
from sojourn.runtime.telemetry import configure_logging
configure_logging(terminal={terminal})
structlog.get_logger().info("session.snapshotted", seq=7)
structlog.get_logger().debug("never.shown")
logging.getLogger("other").info("never shown")
logging.getLogger("other").warning("from another %s", "library")
try:
    1 / 0
except ZeroDivisionError as error:
    structlog.get_logger().error("it.broke", exc_info=error)
"""


def run(terminal: bool | None) -> str:
    program = PROGRAM.format(terminal=terminal)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "never" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("terminal", [False, None])
def test_in_a_pipe_every_line_is_a_json_object(terminal: bool | None) -> None:
    snapshotted, other, broke = [json.loads(line) for line in run(terminal).splitlines()]
    assert (snapshotted["event"], snapshotted["seq"], snapshotted["level"]) == (
        "session.snapshotted",
        7,
        "info",
    )
    assert (other["event"], other["level"]) == ("from another library", "warning")
    assert "ZeroDivisionError" in broke["exception"]
    assert snapshotted["timestamp"].endswith("Z")


def test_on_a_terminal_lines_are_for_people() -> None:
    said = run(True)
    assert "session.snapshotted" in said
    assert "from another library" in said
    assert "ZeroDivisionError" in said
