"""Sessions through all tiers, on a folder and on S3 (moto): the state equal to the byte in each, the events too, and the
catalog rebuilt equal row by row. And one session of a simulated day, 500,000 events: snapshot, memory and journal flat.
"""

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from attrs import evolve

from sojourn.actors.ports import CatalogQuery
from sojourn.actors.session.commands import AppendLog, Command, RecordResult, ReportProgress, SampleResources
from sojourn.actors.session.model import CaseOutcome
from sojourn.actors.session.wire import read_command, read_create
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.tuning import tune_process

from ..support.s3 import make_bucket, serving, set_credentials

SESSIONS = 100
DAY_EVENTS = 500_000
BATCH = 500
CASES = 2_000
MOVED_S = 300.0
FLAT_SHARE = 1.1
INSTANT_DAYS = 1e-6


def prove(rng: random.Random) -> dict[str, Any]:
    """100 sessions a store; EVENTS (500,000) for the day."""
    with tempfile.TemporaryDirectory(prefix="sojourn-prove-") as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        day = asyncio.run(_day(folder / "day", int(os.environ.get("EVENTS") or DAY_EVENTS), rng))
        stores = {"folder": asyncio.run(_through_tiers(folder / "on-folder", None, rng))}
        set_credentials(patch)
        with serving() as endpoint:
            archive = f"s3://{make_bucket()}/sojourn?endpoint={endpoint}"
            stores["s3"] = asyncio.run(_through_tiers(folder / "on-s3", archive, rng))
    counted = ("states_differ", "events_differ", "rows_differ")
    wrong = sum(found[name] for found in stores.values() for name in counted)
    return {"holds": not wrong and day["flat"], "figures": {**stores, "day": day}}


async def _through_tiers(folder: Path, archive: str | None, rng: random.Random) -> dict[str, Any]:
    settings = Settings(
        data_dir=folder, archive=archive, recent_days=1_000.0, journal_bytes_max=4 * 1024**2, mirror="none"
    )
    states: dict[str, bytes] = {}
    events: dict[str, list[bytes]] = {}
    differ = {"states_differ": 0, "events_differ": 0}
    took: dict[str, float] = {}
    seen_active = 0
    async with Runtime.open(settings) as runtime:
        for number in range(SESSIONS):
            session_id = await _session(runtime, f"{number}", rng)
            _, states[session_id] = await runtime.state(session_id)
            events[session_id] = [line.line async for line in runtime.events(session_id)]
            seen_active += (await runtime.record(session_id))["tier"] == "active"
        took["recent"] = await _wait_for(runtime, "recent")
        await _compare(runtime, states, events, differ)
    async with Runtime.open(evolve(settings, recent_days=INSTANT_DAYS)) as runtime:
        took["archive"] = await _wait_for(runtime, "archive")
        await _compare(runtime, states, events, differ)
        rows = await _rows(runtime)
    for file in folder.glob("catalog.db*"):
        file.unlink()
    async with Runtime.open(settings) as runtime:
        rebuilt = await _rows(runtime)
        await _compare(runtime, states, events, differ)
    return {
        "sessions": SESSIONS,
        "events": sum(map(len, events.values())),
        "state_read_while_active": seen_active,
        "recent_after_s": round(took["recent"], 1),
        "archived_after_s": round(took["archive"], 1),
        "rows_differ": sum(rows.get(name) != rebuilt.get(name) for name in rows.keys() | rebuilt.keys()),
        **differ,
    }


async def _session(runtime: Runtime, title: str, rng: random.Random) -> str:
    record, _ = await runtime.create(read_create({"plan": "prove", "title": title, "metadata": {"n": title}}))
    session_id: str = record["session_id"]
    await runtime.ask(session_id, read_command({"type": "session.start"}))
    n = 0
    for _ in range(rng.randrange(1, 12)):
        size = rng.randrange(1, BATCH)
        await runtime.ask_batch(session_id, [_command(n + at, rng) for at in range(1, size + 1)])
        n += size
    await runtime.ask(session_id, read_command({"type": "session.complete", "outcome": "passed"}))
    await runtime.ask(session_id, read_command({"type": "session.seal"}))
    return session_id


def _command(n: int, rng: random.Random) -> Command:
    """Of what a day of testing says: mostly log lines, then results, progress and samples."""
    draw = rng.random()
    if draw < 0.6:
        body: Any = AppendLog(stream="stdout", text=f"line {n} " + "x" * rng.randrange(120))
        return Command("log.append", body, None, "", "prove", n)
    if draw < 0.85:
        case, outcome = f"tests.test_{rng.randrange(CASES)}", rng.choice(list(CaseOutcome))
        body = RecordResult(case_id=case, duration_s=rng.random(), outcome=outcome)
        return Command("result.record", body, None, "", "prove", n)
    if draw < 0.95:
        return Command("progress.report", ReportProgress(done=n), None, "", "prove", n)
    body = SampleResources(cpu_s=n / 10, processes=3, read_bytes=n, rss_bytes=10**8, written_bytes=n)
    return Command("resource.sample", body, None, "", "prove", n)


async def _wait_for(runtime: Runtime, tier: str) -> float:
    began = time.monotonic()
    while time.monotonic() - began < MOVED_S:
        if all(record["tier"] == tier for record in await runtime.page(CatalogQuery(limit=SESSIONS))):
            return time.monotonic() - began
        await asyncio.sleep(0.2)
    raise AssertionError(f"not all are {tier} after {MOVED_S} s: {runtime.statistics().tiering}")


async def _compare(
    runtime: Runtime, states: dict[str, bytes], events: dict[str, list[bytes]], differ: dict[str, int]
) -> None:
    for session_id, state in states.items():
        differ["states_differ"] += (await runtime.state(session_id))[1] != state
        found = [line.line async for line in runtime.events(session_id)]
        differ["events_differ"] += found != events[session_id]


async def _rows(runtime: Runtime) -> dict[str, Any]:
    rows = await runtime._catalog.page(CatalogQuery(limit=10 * SESSIONS))
    return {row.session_id: row for row in rows}


async def _day(folder: Path, total: int, rng: random.Random) -> dict[str, Any]:
    """Measured at each tenth. Flat is: snapshots hardly grow from the third tenth on, when every case has run, and memory
    hardly from the first tenth on in which the journal is compacted."""
    tune_process()  # as a server is
    process = psutil.Process()
    settings = Settings(data_dir=folder, snapshot_interval_s=1.0, mirror="none")
    rss: list[int] = []
    compacting_from = 0
    snapshots: list[int] = []
    journal_bytes = 0
    async with Runtime.open(settings) as runtime:
        record, _ = await runtime.create(read_create({"plan": "prove", "title": "a day"}))
        session_id: str = record["session_id"]
        await runtime.ask(session_id, read_command({"type": "session.start"}))
        began = time.monotonic()
        for start in range(0, total, BATCH):
            await runtime.ask_batch(session_id, [_command(start + at, rng) for at in range(1, BATCH + 1)])
            journal_bytes = max(journal_bytes, runtime.statistics().compaction.journal_bytes)
            if (start + BATCH) % (total // 10) < BATCH:
                rss.append(process.memory_info().rss)
                compacting_from += not runtime.statistics().compaction.segments_written
                await _written(folder, runtime)
                snapshots.append(_newest_size(folder))
        took = time.monotonic() - began
        _, state = await runtime.state(session_id)
        await runtime.ask(session_id, read_command({"type": "session.complete", "outcome": "passed"}))
        await runtime.ask(session_id, read_command({"type": "session.seal"}))
        await _until(runtime, session_id, lambda record: record["tier"] == "recent")
        rss.append(process.memory_info().rss)
        seqs = [line.seq async for line in runtime.events(session_id)]
    return {
        "events": len(seqs),
        "seq_gaps": sum(seq != at for at, seq in enumerate(seqs, 1)),
        "events_per_s": round(total / took),
        "journal_bytes_most": journal_bytes,
        "journal_bytes_max": settings.journal_bytes_max,
        "snapshot_bytes_by_tenth": snapshots,
        "rss_bytes_by_tenth_and_after_hand_off": rss,
        "state_bytes": len(state),
        "flat": journal_bytes <= settings.journal_bytes_max
        and snapshots[-1] <= snapshots[2] * FLAT_SHARE
        and rss[9] <= rss[min(compacting_from, 8)] * FLAT_SHARE
        and seqs == list(range(1, len(seqs) + 1)),
    }


async def _written(folder: Path, runtime: Runtime) -> None:
    """Waits for a snapshot that is newer than now."""
    before = runtime.statistics().snapshots_written
    await runtime._snapshotter.write_due()
    deadline = time.monotonic() + 20
    while runtime.statistics().snapshots_written == before and time.monotonic() < deadline:
        await asyncio.sleep(0.05)


def _newest_size(folder: Path) -> int:
    snapshots = sorted(folder.glob("sessions/*/*/snapshot-*"))
    return snapshots[-1].stat().st_size if snapshots else 0


async def _until(runtime: Runtime, session_id: str, holds: Callable[[dict[str, Any]], bool]) -> None:
    deadline = time.monotonic() + MOVED_S
    while not holds(await runtime.record(session_id)):
        if time.monotonic() > deadline:
            raise AssertionError(f"{session_id}: {runtime.statistics().tiering}")
        await asyncio.sleep(0.2)
