"""SUBSCRIBERS (1,000) followers of the mirror in another process, over 50 sessions, while their connections are shut at random
and all of them at once from the server's side: each sees every event once and in order, as the history has it, and what it
did not see is said and is in the history.
"""

import asyncio
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

from sojourn.actors.session.commands import Command, Complete, Seal
from sojourn.actors.session.model import Outcome
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.telemetry import configure_logging
from sojourn.runtime.tuning import tune_process

from ..support.fleet import Fleet, Reporter, fleet_of
from ..support.redis import Server, serving
from ..support.stores import ROOT

SESSIONS = 50
CUT_EVERY_S = 0.02
ALL_CUT_EVERY_S = 10.0
DEADLINE_S = 120.0


def prove(rng: random.Random) -> dict[str, Any]:
    """FOR_S seconds (60); SERVER is valkey (default) or redis."""
    subscribers, for_s = int(os.environ.get("SUBSCRIBERS") or 1_000), float(os.environ.get("FOR_S") or 60)
    name = os.environ.get("SERVER") or "valkey"
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # the server inherits it
    configure_logging(level="error")
    tune_process()
    with tempfile.TemporaryDirectory(prefix="sojourn-prove-") as folder, serving(name, tcp=True) as server:
        found = asyncio.run(_prove(Path(folder), server, subscribers, for_s, rng))
    found["figures"]["server"] = name
    return found


async def _prove(
    folder: Path, server: Server, subscribers: int, for_s: float, rng: random.Random
) -> dict[str, Any]:
    settings = Settings(
        data_dir=folder / "data",
        mirror=server.unix,
        snapshot_interval_s=5.0,
        snapshot_journal_bytes_min=16 * 1024,
        seal_after_s=0.0,
    )
    async with Runtime.open(settings) as runtime, fleet_of(runtime, server) as fleet:
        reporters = await fleet.add(SESSIONS, rng)
        process = await asyncio.to_thread(_followers)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            plan = {
                "url": server.tcp,
                "sessions": [reporter.session_id for reporter in reporters],
                "subscribers": subscribers,
                "seed": rng.randrange(1 << 30),
                "cut_every_s": CUT_EVERY_S,
            }
            process.stdin.write(json.dumps(plan) + "\n")
            process.stdin.flush()
            async with asyncio.timeout(DEADLINE_S):
                ready = await asyncio.to_thread(process.stdout.readline)
            assert ready == "ready\n", ready
            print("  all follow", file=sys.stderr)
            killed = await _report(fleet, server, for_s)
            for reporter in reporters:
                await fleet.shadows[reporter.session_id].catch_up(runtime)
                await runtime.ask(
                    reporter.session_id, Command("session.complete", Complete(outcome=Outcome.PASSED))
                )
                await runtime.ask(reporter.session_id, Command("session.seal", Seal()))
            async with asyncio.timeout(DEADLINE_S):
                told = json.loads(await asyncio.to_thread(process.stdout.readline))
                await asyncio.to_thread(process.wait)
        finally:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
        history = {
            session_id: {line.seq: zlib.crc32(line.line) async for line in runtime.events(session_id)}
            for session_id in fleet.shadows
        }
        return judged(history, told, killed, await fleet.lost())


def _followers() -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.followers"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


async def _report(fleet: Fleet, server: Server, for_s: float) -> int:
    """Bursts of a few events, and now and then all subscriptions are ended by the server. Answers how many."""
    until_s = time.monotonic() + for_s

    async def bursts(reporter: Reporter) -> None:
        while time.monotonic() < until_s:
            await asyncio.sleep(reporter.rng.uniform(0.2, 2.0))
            for _ in range(reporter.rng.randrange(1, 6)):
                await reporter.tell()

    killed = 0
    async with asyncio.TaskGroup() as tasks:
        reporting = [tasks.create_task(bursts(reporter)) for reporter in fleet.reporters]
        while not all(task.done() for task in reporting):
            await asyncio.sleep(min(ALL_CUT_EVERY_S, for_s / 4))
            killed += await asyncio.to_thread(server.run, "CLIENT", "KILL", "TYPE", "pubsub")
    return killed


def judged(
    history: dict[str, dict[int, int]], told: dict[str, Any], killed: int, lost: list[str]
) -> dict[str, Any]:
    """What they saw, against the history."""
    gaps = gap_events = unknown_gaps = disorder = altered = unended = missed = 0
    for session_id, events, last_seq, wrong, changed, moved_at, declared in told["subscribers"]:
        whole = history[session_id]
        disorder += wrong
        altered += changed
        unended += moved_at != max(whole)
        gaps += len(declared)
        size = sum(last - first + 1 for first, last in declared)
        gap_events += size
        unknown_gaps += any(seq not in whole for first, last in declared for seq in range(first, last + 1))
        missed += max(whole) - events - size + (last_seq != max(whole))
    for session_id, seen in told["told"].items():
        altered += sum(history[session_id].get(seq) != crc for seq, crc in seen)
    bad = {
        "out_of_order_or_twice": disorder,
        "missed_without_a_word": missed,
        "other_than_the_history": altered,
        "gaps_beyond_the_history": unknown_gaps,
        "not_told_of_the_end": unended,
        "lost": len(lost),
    }
    figures = {
        "subscribers": len(told["subscribers"]),
        "sessions": len(history),
        "deliveries": sum(one[1] for one in told["subscribers"]),
        "connections_shut": told["cuts"],
        "subscriptions_killed": killed,
        "gaps_declared": gaps,
        "events_in_gaps": gap_events,
        **bad,
    }
    return {"holds": not any(bad.values()), "figures": figures}
