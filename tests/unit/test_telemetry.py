"""Logs in both forms, in a process of their own: logging is the process's."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import logging, structlog
from sojourn.runtime.telemetry import bind_process, configure_logging
configure_logging(terminal={terminal}, level={level!r})
bind_process(epoch=3)
structlog.get_logger().info("session.snapshotted", seq=7, path="/x\x1b[2J")
structlog.get_logger().warning("session.damaged", epoch=2, remedy="look")
structlog.get_logger().debug("never.shown")
logging.getLogger("other").info("never shown")
logging.getLogger("other").warning("from another %s", "library")
def fails(secret):
    1 / 0
try:
    fails("s3cret")
except ZeroDivisionError as error:
    structlog.get_logger().error("it.broke", exc_info=error)
"""


def run(terminal: bool | None, level: str | int = "info", **variables: str) -> str:
    program = PROGRAM.format(terminal=terminal, level=level)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TERM": "xterm", **variables},
    )
    assert done.stdout == ""
    assert "never" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("terminal", [False, None])
def test_in_a_pipe_every_line_is_a_json_object(terminal: bool | None) -> None:
    snapshotted, damaged, other, broke = [json.loads(line) for line in run(terminal).splitlines()]
    assert (snapshotted["event"], snapshotted["seq"], snapshotted["level"]) == (
        "session.snapshotted",
        7,
        "info",
    )
    assert (other["event"], other["level"]) == ("from another library", "warning")
    assert "ZeroDivisionError" in broke["exception"]
    assert snapshotted["timestamp"].endswith("Z")
    assert snapshotted["path"] == "/x\x1b[2J"
    assert damaged["remedy"] == "look"


def test_what_the_process_knows_is_on_every_line_that_does_not_say_otherwise() -> None:
    snapshotted, damaged, other, _ = [json.loads(line) for line in run(False).splitlines()]
    assert (snapshotted["epoch"], damaged["epoch"], other["epoch"]) == (3, 2, 3)


@pytest.mark.parametrize(
    ("level", "events"),
    [
        ("warning", ["session.damaged", "from another library", "it.broke"]),
        ("error", ["it.broke"]),
        (40, ["it.broke"]),
    ],
)
def test_only_what_has_the_level_is_written(level: str | int, events: list[str]) -> None:
    assert [json.loads(line)["event"] for line in run(False, level).splitlines()] == events


def test_on_a_terminal_lines_are_for_people() -> None:
    said = run(True)
    assert "session.snapshotted" in said
    assert "from another library" in said
    assert "ZeroDivisionError" in said
    # Nothing of another's making acts on the terminal, and a traceback shows no variables.
    assert "\x1b[2J" not in said
    assert "/x\\x1b[2J" in said
    assert "s3cret" not in said.replace('fails("s3cret")', "")


def test_on_a_terminal_lines_are_coloured_unless_that_is_not_wanted() -> None:
    assert "\x1b[" in run(True, NO_COLOR="")
    assert "\x1b[" not in run(True, NO_COLOR="1")
    assert "\x1b[" not in run(True, NO_COLOR="", TERM="dumb")
