"""SIGKILL of `record` at random moments: its command lives on to its end, what had been acknowledged is there, `ls` shows
the session as lost within two heartbeats, and the next `record` delivers what lay in the spool, each line once."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx2
from attrs import define

from sojourn.actors.session.record import LOST_AFTER_S
from sojourn.runtime.paths import api_socket_path
from sojourn.runtime.reader import Reader

from ..support.wait import wait_until
from ._suites import SOJOURN, clean_environment

LINES = 1_500
AT_ONCE = 10
# What is recorded: it prints a line every 20 ms, and at its end leaves a file that says so.
COMMAND = """
import pathlib, sys, time
for n in range(int(sys.argv[1])):
    print(f"line {n}", flush=True)
    time.sleep(0.02)
pathlib.Path(sys.argv[2]).write_text("done")
"""


@define(eq=False)
class Recording:
    process: "subprocess.Popen[bytes]"
    done: Path
    title: str
    kill_at: float
    killed_at: float | None = None
    held_at_kill: int = 0
    lost_after_s: float | None = None


def prove(rng: random.Random) -> dict[str, Any]:
    """KILLS kills (5), each of a recorder of its own, ten at a time, all on one data folder."""
    kills = int(os.environ.get("KILLS") or 5)
    with tempfile.TemporaryDirectory(prefix="sojourn-prove-") as name:
        folder = Path(name)
        data = folder / "data"
        recordings: list[Recording] = []
        for start in range(0, kills, AT_ONCE):
            recordings += _kill_some(folder, data, range(start, min(start + AT_ONCE, kills)), rng)
            print(f"  {len(recordings)} of {kills} killed", file=sys.stderr)
        # Spools of dead recorders are delivered by the next one.
        _run(data, "--title", "next", "--", "true")
        checked = [_check(data, one) for one in recordings]
    figures = {
        "kills": kills,
        "commands_that_lived_on": sum(one["lived_on"] for one in checked),
        "acknowledged_at_kill": sum(one.held_at_kill for one in recordings),
        "lines_held_at_the_end": sum(one["held"] for one in checked),
        "lost": sum(one["lost"] for one in checked),
        "doubled": sum(one["doubled"] for one in checked),
        "gaps": sum(one["gaps"] for one in checked),
        "shown_lost_after_s_max": max(one.lost_after_s or 0 for one in recordings),
    }
    # Signs of life come every 15 s at most, so a session is shown as lost within two heartbeats of its last one.
    holds = (
        not (figures["lost"] or figures["doubled"] or figures["gaps"])
        and figures["commands_that_lived_on"] == kills
    )
    return {"holds": holds and figures["shown_lost_after_s_max"] <= LOST_AFTER_S + 2, "figures": figures}


def _kill_some(folder: Path, data: Path, numbers: range, rng: random.Random) -> list[Recording]:
    """Recorders that were killed, once each is shown as lost and its command has ended."""
    recordings = [
        _start(folder, data, f"r{n}", time.monotonic() + rng.uniform(1.5, 1.5 + 0.9 * len(numbers)))
        for n in numbers
    ]
    for recording in sorted(recordings, key=lambda one: one.kill_at):
        wait_until(partial(_may_die, data, recording))
        recording.held_at_kill = _held(data, recording)
        assert recording.process.poll() is None, "a kill of a recorder that has ended does not count"
        recording.process.send_signal(signal.SIGKILL)
        recording.process.wait()
        recording.killed_at = time.monotonic()
    while any(one.lost_after_s is None for one in recordings):
        rows = _rows(data)
        for one in recordings:
            assert one.killed_at is not None
            since = time.monotonic() - one.killed_at
            if one.lost_after_s is None and rows[one.title]["lost"]:
                one.lost_after_s = round(since, 1)
            assert since < LOST_AFTER_S * 2, f"{one.title} is not lost after {since:.0f} s"
    for one in recordings:
        wait_until(one.done.exists, 60.0)
    return recordings


def _start(folder: Path, data: Path, title: str, kill_at: float) -> Recording:
    done = folder / f"{title}.done"
    command = [sys.executable, "-c", COMMAND, str(LINES), str(done)]
    process = subprocess.Popen(
        [SOJOURN, "record", "--data", str(data), "--title", title, "--", *command],
        env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return Recording(process, done, title, kill_at)


def _run(data: Path, *arguments: str) -> None:
    subprocess.run(
        [SOJOURN, "record", "--data", str(data), *arguments],
        env=clean_environment(),
        check=True,
        capture_output=True,
    )


def _rows(data: Path) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [SOJOURN, "ls", "--data", str(data), "--json", "--limit", "1000"],
        env=clean_environment(),
        capture_output=True,
        check=False,
    )
    found = json.loads(done.stdout) if done.returncode == 0 else {"items": []}
    return {row["title"]: row for row in found["items"]}


def _row(data: Path, recording: Recording) -> dict[str, Any]:
    return _rows(data).get(recording.title, {})


def _may_die(data: Path, recording: Recording) -> bool:
    return time.monotonic() >= recording.kill_at and _held(data, recording) > 0


def _held(data: Path, recording: Recording) -> int:
    """How many lines the server has acknowledged so far."""
    try:
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(api_socket_path(data)))) as client:
            rows = client.get("http://sojourn/api/v1/sessions?limit=1000").json()["items"]
    except httpx2.TransportError:
        return 0  # not up yet
    return sum(row["logs"]["lines"] for row in rows if row["title"] == recording.title)


def _check(data: Path, recording: Recording) -> dict[str, Any]:
    lines = anyio.run(_lines, data, _row(data, recording)["session_id"])
    numbers = [int(text.split()[1]) for text in lines]
    return {
        "lived_on": recording.done.read_text() == "done",
        "held": len(numbers),
        "lost": max(0, recording.held_at_kill - len(set(numbers))),
        "doubled": len(numbers) - len(set(numbers)),
        "gaps": int(numbers != list(range(len(numbers)))),
    }


async def _lines(data: Path, session_id: str) -> list[str]:
    async with Reader.open(data) as reader:
        events = [line async for line in reader.events(session_id)]
    return [json.loads(line.line)["data"]["text"] for line in events if line.type == "log.appended"]
