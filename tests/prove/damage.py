"""Bytes of stored files damaged, FLIPS times (2,000): a bit flipped, a file cut short, a range zeroed. Each time one file
of a fresh copy of a data folder, which is then opened by the real runtime, read whole, and verified. Everything that is
served is what was recorded, or it is declared that it is not; and no damage to bytes that hold something goes unseen.

Two folders with active, recent and archived sessions: one that was closed, and one as a SIGKILLed owner leaves it, with
all it did in the logs of both databases.
"""

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import anyio
import structlog
from attrs import define, evolve, field, frozen

from sojourn.actors.errors import Damaged, SojournError, UnusableFolder
from sojourn.actors.ports import CatalogQuery
from sojourn.actors.session.wire import read_command, read_create
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.stores.sqlite_files import part_path
from sojourn.runtime.verify import verify_folder

ROOT = Path(__file__).resolve().parents[2]
FLIPS = 2_000
PROCESSES = 2
TRIAL_S = 60.0
BUILD_S = 60.0
INSTANT_DAYS = 1e-6
NEVER_S = 1e6
ALL = CatalogQuery(limit=1_000)
WRONG_SHOWN = 20
_AT_READING = frozenset({"damaged", "duration_s", "last_sign_at", "lost", "quarantined"})

DATABASES = ("journal.db", "catalog.db")
KINDS = {
    "journal": ("journal.db",),
    "journal log": ("journal.db-wal",),
    "journal mark": ("journal.db-mark",),
    "catalog": ("catalog.db",),
    "catalog log": ("catalog.db-wal",),
    "catalog mark": ("catalog.db-mark",),
    "format": ("format",),
    "snapshot": ("sessions/*/*/snapshot-*",),
    "segment": ("sessions/*/*/events-*",),
    "manifest": ("sessions/*/*/manifest.json",),
    "facts": ("sessions/*/*/facts.json",),
    "archived snapshot": ("archive/sessions/*/*/snapshot-*",),
    "archived segment": ("archive/sessions/*/*/events-*",),
    "archived manifest": ("archive/sessions/*/*/manifest.json",),
    "archived facts": ("archive/sessions/*/*/facts.json",),
}
WEIGHTS = {"journal": 6, "journal log": 4, "catalog": 6, "catalog log": 4, "segment": 2, "snapshot": 2}


# -- two folders -----------------------------------------------------------------------------------------------------


async def _session(runtime: Runtime, title: str, batches: int, *, sealed: bool = False) -> str:
    record, _ = await runtime.create(read_create({"plan": "prove", "title": title}))
    session_id: str = record["session_id"]
    await runtime.ask(session_id, read_command({"type": "session.start"}))
    for batch in range(batches):
        lines = [
            read_command(
                {"type": "log.append", "stream": "stdout", "text": f"{title} {batch}.{line} ".ljust(300, "x")}
            )
            for line in range(20)
        ]
        case = {"type": "result.record", "case_id": f"c{batch}", "outcome": "passed", "duration_s": 0.1}
        await runtime.ask_batch(session_id, [*lines, read_command(case)])
    if sealed:
        await runtime.ask(session_id, read_command({"type": "session.complete", "outcome": "passed"}))
        await runtime.ask(session_id, read_command({"type": "session.seal"}))
    return session_id


async def _until(holds: Callable[[], Any]) -> None:
    with anyio.fail_after(BUILD_S):
        while not await holds():
            await anyio.sleep(0.02)


async def _moved(runtime: Runtime, ids: list[str], tier: str) -> None:
    async def all_are() -> bool:
        return all([(await runtime.record(session_id))["tier"] == tier for session_id in ids])

    await _until(all_are)


async def fill(folder: Path) -> None:
    """Archived sessions first, then recent ones, then active ones of which a part has left the journal."""
    for recent_days, tier in ((INSTANT_DAYS, "archive"), (1_000.0, "recent")):
        settings = Settings(data_dir=folder, recent_days=recent_days, seal_after_s=0.0, mirror="none")
        async with Runtime.open(settings) as runtime:
            ids = [await _session(runtime, f"{tier} {n}", 2 + n, sealed=True) for n in range(3)]
            await _moved(runtime, ids, "recent" if tier == "recent" else "archive")
            for session_id in ids[:2]:
                await runtime.set_facts(session_id, title=f"{tier} and named", tags=["set"])
    settings = Settings(data_dir=folder, seal_after_s=NEVER_S, journal_bytes_max=192 * 1024, mirror="none")
    async with Runtime.open(settings) as runtime:
        for n in range(4):
            await _session(runtime, f"active {n}", 12)
            await runtime._snapshotter.write_due()
        await _until(lambda: _is_within(runtime))
    async with Runtime.open(evolve(settings, journal_bytes_max=Settings().journal_bytes_max)) as runtime:
        session_id = await _session(runtime, "in the journal and ended", 12)
        await runtime.ask(session_id, read_command({"type": "session.complete", "outcome": "passed"}))
        for n in range(6):
            await _session(runtime, f"in the journal {n}", n % 3)


async def _is_within(runtime: Runtime) -> bool:
    found = runtime.statistics().compaction
    return found.journal_bytes <= found.journal_bytes_max and found.segments_written > 0


async def fill_and_die(folder: Path) -> None:
    """More of each tier, and nothing of it written back from the logs: a reader that looks at what stood there before
    holds them."""
    readers = [sqlite3.connect(folder / name, isolation_level=None) for name in DATABASES]
    settings = Settings(data_dir=folder, recent_days=INSTANT_DAYS, seal_after_s=0.0, mirror="none")
    async with Runtime.open(settings) as runtime:
        for reader in readers:
            reader.execute("BEGIN").execute("SELECT count(*) FROM sqlite_schema").fetchall()
        ids = [await _session(runtime, f"late archive {n}", 2, sealed=True) for n in range(2)]
        await _moved(runtime, ids, "archive")
        await runtime.set_facts(ids[0], title="late and named")
    settings = evolve(settings, recent_days=1_000.0)
    async with Runtime.open(settings) as runtime:
        ids = [await _session(runtime, f"late recent {n}", 2, sealed=True) for n in range(2)]
        await _moved(runtime, ids, "recent")
        await runtime.set_facts(ids[0], title="late and named")
        for n in range(2):
            await _session(runtime, f"late active {n}", 2)
        await runtime.page(ALL)  # the catalog is level with that
        await _session(runtime, "last", 1)
        os.kill(os.getpid(), signal.SIGKILL)


def build(folder: Path) -> dict[str, Path]:
    """The folders to be damaged, by their names."""
    closed, killed = folder / "closed", folder / "killed"
    asyncio.run(fill(closed))
    shutil.copytree(closed, killed)
    done = subprocess.run(
        [sys.executable, "-m", "tests.prove.damage", str(killed)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != -signal.SIGKILL:
        raise AssertionError(done.stderr)
    for name in DATABASES:
        assert part_path(killed / name, "-wal").stat().st_size > 0
    return {"closed": closed, "killed": killed}


# -- one trial -------------------------------------------------------------------------------------------------------


@define
class Seen:
    """What a runtime on a folder served and said. `sessions` has of each what was read, or the error; `listed` are the
    records of the list."""

    refused: SojournError | None = None
    sessions: dict[str, dict[str, Any]] = field(factory=dict)
    listed: dict[str, Any] = field(factory=dict)
    damaged: set[str] = field(factory=set)
    said: list[dict[str, Any]] = field(factory=list)


@frozen(kw_only=True)
class Damage:
    """What was done to which file."""

    base: str
    kind: str
    name: str
    how: str
    at: int
    size: int


@frozen(kw_only=True)
class Verdict:
    """`outcome` is one of `refused`, `declared`, `healed`, `found by verification`, `held nothing`, `WRONG`."""

    damage: Damage
    outcome: str
    why: str = ""


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """Without what depends on when it is read."""
    plain = {name: value for name, value in record.items() if name not in _AT_READING}
    return {**plain, "metadata": {**record["metadata"], "duration_minutes": None}}


async def look(folder: Path, ids: list[str]) -> Seen:
    """Everything that a runtime serves of these sessions."""
    seen = Seen()
    settings = Settings(
        mirror="none", data_dir=folder, recent_days=1_000.0, seal_after_s=NEVER_S, snapshot_interval_s=3_600.0
    )
    with structlog.testing.capture_logs() as logs, anyio.fail_after(TRIAL_S):
        try:
            async with Runtime.open(settings) as runtime:
                for session_id in ids:
                    seen.sessions[session_id] = await _read(runtime, session_id)
                for record in await runtime.page(ALL):
                    seen.listed[record["session_id"]] = _plain(record)
                    if record["damaged"] is not None:
                        seen.damaged.add(record["session_id"])
        except SojournError as error:
            seen.refused = error
    seen.said = [dict(line) for line in logs if line["log_level"] in ("warning", "error")]
    return seen


async def _read(runtime: Runtime, session_id: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for what in ("state", "record", "events"):
        try:
            if what == "state":
                found[what] = (await runtime.state(session_id))[1]
            elif what == "record":
                found[what] = _plain(await runtime.record(session_id))
            else:
                found[what] = [line.line async for line in runtime.events(session_id)]
        except SojournError as error:
            found[what] = error
    return found


def copy(base: Path, to: Path, damaged: str) -> None:
    """Links, but for the file that will be damaged and those that an owner writes in place."""
    to.mkdir()
    for path in sorted(base.rglob("*")):
        name = path.relative_to(base).as_posix()
        if path.is_dir():
            (to / name).mkdir(parents=True, exist_ok=True)
        elif name == damaged or name.startswith(DATABASES):
            shutil.copyfile(path, to / name)
        elif name not in ("lock", "reserve"):
            os.link(path, to / name)


def choose(rng: random.Random, bases: dict[str, Path]) -> Damage:
    """A kind of file, one of that kind, and what is done to it where."""
    base = rng.choice(sorted(bases))
    kinds = {
        kind: sorted(path for glob in globs for path in bases[base].glob(glob))
        for kind, globs in KINDS.items()
    }
    kinds = {kind: paths for kind, paths in kinds.items() if paths and paths[0].stat().st_size}
    kind = rng.choices(sorted(kinds), [WEIGHTS.get(kind, 1) for kind in sorted(kinds)])[0]
    path = rng.choice(kinds[kind])
    file_bytes = path.stat().st_size
    how = rng.choices(("flip", "cut", "zeros"), (6, 1, 3))[0]
    size = {"flip": 1 << rng.randrange(8), "cut": 0, "zeros": rng.choice((1, 2, 4, 16, 64, 256, 1024, 4096))}[
        how
    ]
    at = rng.randrange(file_bytes)
    if path.name.startswith(DATABASES) and rng.random() < 0.5:
        # What says where things are: the first page, and the head of a page.
        page = 8192 if path.name.startswith("journal") else 4096
        at = rng.randrange(page) if rng.random() < 0.3 else at // page * page + rng.randrange(100)
        at = min(at, file_bytes - 1)
    name = path.relative_to(bases[base]).as_posix()
    return Damage(base=base, kind=kind, name=name, how=how, at=at, size=size)


def inflict(damage: Damage, folder: Path) -> bool:
    """False where the bytes are what they were."""
    path = folder / damage.name
    before = path.read_bytes()
    data = bytearray(before)
    if damage.how == "flip":
        data[damage.at] ^= damage.size
    elif damage.how == "cut":
        del data[damage.at :]
    else:
        end = min(damage.at + damage.size, len(data))
        data[damage.at : end] = bytes(end - damage.at)
    path.write_bytes(data)
    return data != before


def contents(folder: Path, name: str) -> Any:
    """What a file says, apart from how: for a database all lines of its tables, in their order."""
    database = next((database for database in DATABASES if name.startswith(database)), None)
    if database is None or name.endswith("-mark"):
        data = (folder / name).read_bytes()
        return data[:32] if name.endswith("-mark") else data.strip() if name == "format" else data
    with tempfile.TemporaryDirectory(prefix="sojourn-prove-") as place:
        for part in ("", "-wal"):
            if part_path(folder / database, part).exists():
                shutil.copyfile(part_path(folder / database, part), part_path(Path(place) / database, part))
        with closing(sqlite3.connect(Path(place) / database)) as connection:
            tables = [
                table
                for (table,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
            ]
            columns = {"journal": "data"}  # a row's number only orders it
            return {
                "schema": connection.execute(
                    "SELECT type, name, tbl_name, sql FROM sqlite_schema"
                ).fetchall(),
                "versions": [
                    connection.execute(f"PRAGMA {pragma}").fetchone()
                    for pragma in ("user_version", "application_id")
                ],
                **{
                    table: connection.execute(f"SELECT {columns.get(table, '*')} FROM {table}").fetchall()
                    for table in tables
                },
            }


def judge(damage: Damage, truth: Seen, seen: Seen, flaws: list[str], same: Callable[[], bool]) -> Verdict:
    """What became of it."""

    def verdict(outcome: str, why: str = "") -> Verdict:
        return Verdict(damage=damage, outcome=outcome, why=why)

    if seen.refused is not None:
        if not isinstance(seen.refused, Damaged | UnusableFolder) or not str(seen.refused):
            return verdict("WRONG", f"refused without a clear error: {seen.refused!r}")
        return verdict("refused", str(seen.refused))
    said = [str(line) for line in seen.said]
    named = [line for line in said if any(name in line for name in (damage.name, damage.name.split("-")[0]))]
    differing: list[str] = []
    for session_id, expected in truth.sessions.items():
        found = seen.sessions[session_id]
        declared = session_id in seen.damaged or bool(named) or any(session_id in line for line in said)
        for what, value in expected.items():
            if isinstance(found[what], SojournError):
                declared = True
            elif found[what] != value:
                differing.append(session_id)
                if not declared and not any(isinstance(one, SojournError) for one in found.values()):
                    return verdict("WRONG", f"{what} of {session_id} differs, and nothing says so")
        if seen.listed.get(session_id) != truth.listed[session_id]:
            differing.append(session_id)
            if not declared:
                return verdict(
                    "WRONG", f"{session_id} is listed as {seen.listed.get(session_id)}, and nothing says so"
                )
    if extra := seen.listed.keys() - truth.listed.keys():
        return verdict("WRONG", f"there are sessions that never were: {extra}")
    failed = any(isinstance(one, SojournError) for found in seen.sessions.values() for one in found.values())
    if differing or failed:
        return verdict("declared", "; ".join(said)[:500])
    if said:
        return verdict("healed", "; ".join(said)[:500])
    if flaws:
        return verdict("found by verification", "; ".join(flaws)[:500])
    return (
        verdict("held nothing")
        if same()
        else verdict("WRONG", "it holds something else, and nothing says so")
    )


async def try_one(bases: dict[str, Path], truths: dict[str, Seen], seed: int, folder: Path) -> Verdict:
    """One damage, from a seed."""
    damage = choose(random.Random(seed), bases)
    copy(bases[damage.base], folder, damage.name)
    if not inflict(damage, folder):
        return Verdict(damage=damage, outcome="held nothing", why="the bytes are what they were")
    try:
        flaws = [str(found) async for found in verify_folder(folder) if found is not None]
        changed = folder.with_name("as-damaged")
        copy(folder, changed, damage.name)
        seen = await look(folder, list(truths[damage.base].sessions))

        def same() -> bool:
            return bool(contents(changed, damage.name) == contents(bases[damage.base], damage.name))

        return judge(damage, truths[damage.base], seen, flaws, same)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer to damage
        return Verdict(damage=damage, outcome="WRONG", why=f"crashed: {error!r}")


async def truth_of(base: Path, folder: Path) -> Seen:
    """What an undamaged copy serves; nothing is said about it, and nothing is flawed."""
    copy(base, folder, "")
    flaws = [found async for found in verify_folder(folder) if found is not None]
    first = await look(folder, [])
    seen = await look(folder, sorted(first.listed))
    assert (flaws, first.said, seen.said, first.refused, seen.refused) == ([], [], [], None, None), (
        flaws,
        first,
        seen,
    )
    shutil.rmtree(folder)
    copy(base, folder, "")
    seen = await look(folder, sorted(first.listed))
    assert not seen.said, seen.said
    return seen


def scratch() -> str | None:
    """Memory, where there is a folder of it: the syncs of 2,000 starts are not what is to be proven."""
    shared = Path("/dev/shm")
    return str(shared) if os.access(shared, os.W_OK) else None


def run(bases: dict[str, Path], truths: dict[str, Seen], seeds: list[int]) -> list[tuple[int, Verdict]]:
    """These trials, one after the other."""
    found = []
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="sojourn-prove-", dir=scratch()) as name:
            found.append((seed, asyncio.run(try_one(bases, truths, seed, Path(name) / "data"))))
    return found


def truths_of(bases: dict[str, Path]) -> dict[str, Seen]:
    """Of each folder."""
    truths = {}
    for name, base in bases.items():
        with tempfile.TemporaryDirectory(prefix="sojourn-prove-", dir=scratch()) as place:
            truths[name] = asyncio.run(truth_of(base, Path(place) / "data"))
    return truths


def prove(rng: random.Random) -> dict[str, Any]:
    """FLIPS damages (2,000)."""
    flips = int(os.environ.get("FLIPS") or FLIPS)
    seeds = [rng.randrange(1 << 32) for _ in range(flips)]
    with tempfile.TemporaryDirectory(prefix="sojourn-prove-", dir=scratch()) as name:
        bases = build(Path(name))
        truths = truths_of(bases)
        parts = [seeds[start : start + 25] for start in range(0, flips, 25)]
        found: list[tuple[int, Verdict]] = []
        with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
            for part in pool.map(run, [bases] * len(parts), [truths] * len(parts), parts):
                found += part
                if len(found) % 200 == 0:
                    print(f"  {len(found)}/{flips}", file=sys.stderr)
    outcomes = Counter(verdict.outcome for _, verdict in found)
    by_kind: dict[str, Counter[str]] = {}
    for _, verdict in found:
        by_kind.setdefault(verdict.damage.kind, Counter())[verdict.outcome] += 1
    wrong = [(seed, verdict) for seed, verdict in found if verdict.outcome == "WRONG"]
    figures = {
        "damages": flips,
        "outcomes": dict(outcomes),
        "by_kind": {kind: dict(counts) for kind, counts in sorted(by_kind.items())},
        "sessions": {name: len(truth.sessions) for name, truth in truths.items()},
        "wrong": [f"seed {seed}: {verdict.damage}: {verdict.why}" for seed, verdict in wrong[:WRONG_SHOWN]],
    }
    return {"holds": not wrong, "figures": figures}


if __name__ == "__main__":
    asyncio.run(fill_and_die(Path(sys.argv[1])))
