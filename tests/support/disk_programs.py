"""What `disk` runs in its children: a runtime under reporters on a disk that fills up, or fails, and what it says of that."""

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
from attrs import evolve

from sojourn.actors.errors import (
    CallerError,
    SessionSealed,
    SojournError,
    StorageFull,
    StoreError,
)
from sojourn.actors.ports import CatalogQuery, Record, RecordKind
from sojourn.actors.session.actor import Done
from sojourn.actors.session.wire import read_command, read_create
from sojourn.runtime.reader import Reader
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.stores.journal_sqlite import SqliteJournal
from sojourn.runtime.stores.reserve import Reserve

from .disk_reporters import (
    AGAIN_S,
    SESSIONS,
    Talk,
    World,
    archived,
    creation,
    drain,
    fill,
    opened,
    read_all,
    script,
)
from .killing import eager

PATIENCE_S = 60.0
FULL_S = 0.3  # how long the disk stays full
REFUSES_S = 1.5  # how long a full disk is waited for to be met
FALSE_S = (
    2.5  # after room returned for so long, nothing is refused any more: twice a probe's pause, and the work
)


def _rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _restarts(runtime: Runtime) -> int:
    return sum(child.restarts for child in runtime.statistics().children)


# -- programs ------------------------------------------------------------------------------------------------------


def settings_of(folder: Path) -> Settings:
    return evolve(eager(folder / "data"), recent_days=0.3 / 86_400, ask_deadline_s=10.0)


async def fills(
    talk: Talk,
    folder: Path,
    *,
    seed: int,
    leave: list[int],
    room: int | None = None,
    sessions: int = SESSIONS,
) -> None:
    """Fills the disk while sessions report, so that each of `leave` bytes is left; looks; gives the room back, or `room`
    bytes of it first."""
    faults: Counter[str] = Counter()
    world = World(talk, seed, sessions)
    rng = random.Random(seed)
    async with opened(settings_of(folder), faults) as runtime, anyio.create_task_group() as tasks:
        world.runtime = runtime
        for number in range(sessions):
            tasks.start_soon(world.live, number)
        while len(world.session_ids) < sessions:
            await anyio.sleep(0.01)
        rss = _rss_bytes()
        for leave_bytes in leave:
            await anyio.sleep(rng.uniform(0.0, 0.4))
            fill(folder, leave_bytes)
            began = time.monotonic()
            before = sum(faults.values())
            refused = 0
            while time.monotonic() < began + REFUSES_S:
                refused = len([at for at, _ in world.refusals if at > began])
                if refused:
                    break
                await anyio.sleep(0.01)
            await anyio.sleep(rng.uniform(0.0, FULL_S))
            reads_s = await read_all(runtime, rng.sample([*world.session_ids.values()], 3), talk)
            small = None
            if room is not None:
                drain(folder, room)
                at, had = time.monotonic(), world.acknowledged
                while world.acknowledged == had and time.monotonic() < at + 4 * FALSE_S:
                    await anyio.sleep(0.01)
                small = time.monotonic() - at if world.acknowledged > had else None
            drain(folder)
            freed_at = time.monotonic()
            moves_s = await world.moves(freed_at, PATIENCE_S)
            talk.say(
                "filled",
                {
                    "leave": leave_bytes,
                    "refused": refused,
                    "faults": sum(faults.values()) - before,
                    "moves_s": moves_s,
                    "small_room_s": small,
                    "reads_s": reads_s,
                    "false": len([1 for _, sent in world.refusals if sent > freed_at + FALSE_S]),
                },
            )
        world.stopping = True
        began = time.monotonic()
        while world.reporting and time.monotonic() < began + PATIENCE_S:
            await anyio.sleep(0.02)
        if world.reporting:
            talk.say("stuck", f"{world.reporting} reporters")
            tasks.cancel_scope.cancel()
        archived_s = await archived(runtime, PATIENCE_S)
        if archived_s is None:
            talk.say("stuck", f"not archived: {runtime.statistics().tiering}")
        talk.say(
            "did",
            {
                "archived_s": archived_s,
                "faults": faults,
                "refused": world.refused,
                "restarts": _restarts(runtime),
                "crashes": runtime.statistics().kernel.crashes,
                "rss_growth": _rss_bytes() - rss,
            },
        )


async def starts(talk: Talk, folder: Path, *, seed: int, leave: int, number: int) -> None:
    """Opens the folder while so much room is left, reads and reports; then there is room."""
    fill(folder, leave)
    reserve = folder / "data" / "reserve"
    talk.say("reserve", reserve.stat().st_size if reserve.exists() else 0)
    faults: Counter[str] = Counter()
    world = World(talk, seed, rounds_max=1)
    served = False
    for attempt in range(2):
        try:
            async with opened(settings_of(folder), faults) as runtime, anyio.create_task_group() as tasks:
                world.runtime = runtime
                found = await runtime.page(CatalogQuery(limit=5))
                await read_all(runtime, [record["session_id"] for record in found], talk)
                tasks.start_soon(world.live, number)
                if attempt == 0:
                    served = True
                    await anyio.sleep(0.2)
                    drain(folder)
                freed_at = time.monotonic()
                while world.acknowledged_at.get(number, 0.0) < freed_at and world.reporting:
                    await anyio.sleep(0.01)
                moves_s = time.monotonic() - freed_at
                if number % 3 == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                if number % 3 == 1:
                    tasks.cancel_scope.cancel()
                talk.say(
                    "did", {"faults": faults, "refused": world.refused, "moves_s": moves_s, "served": served}
                )
            return
        except StoreError as error:
            talk.say("not_opened" if attempt == 0 else "crashed", f"{leave}: {type(error).__name__}: {error}")
            drain(folder)


async def reports(
    talk: Talk, folder: Path, *, seed: int, rounds: int, for_s: float, sessions: int = SESSIONS
) -> None:
    """Opens the folder and reports; for a disk that fails underneath. Opens it again where it did not open."""
    faults: Counter[str] = Counter()
    world = World(talk, seed, sessions, rounds_max=rounds)
    until = time.monotonic() + for_s
    async with anyio.create_task_group() as tasks:
        for number in range(sessions):
            tasks.start_soon(world.live, number)
        for _ in range(4):
            is_open = False
            try:
                async with opened(settings_of(folder), faults) as runtime:
                    world.runtime, is_open = runtime, True
                    while world.reporting and time.monotonic() < until:
                        await anyio.sleep(0.02)
                    await archived(runtime, max(0.0, until - time.monotonic()))
                    talk.say("restarts", _restarts(runtime), runtime.statistics().kernel.crashes)
                    talk.say("refused", dict(world.refused))
                    world.runtime = None
                break
            except SojournError as error:
                world.runtime = None
                talk.say("fell" if is_open else "not_opened", f"{type(error).__name__}: {error}")
        tasks.cancel_scope.cancel()
    talk.say("did", {"faults": faults})


async def small_room(talk: Talk, folder: Path, *, room: int, reserved: bool) -> None:
    """Appends to a journal until the disk is full, gives so much room back, and appends three times more."""
    # With the last 8 KiB the log comes to its end where, without a reserve, writing it back takes all that is freed.
    fill(folder, 12 * 1024 * 1024 + 8 * 1024)
    reserve = Reserve(folder / "reserve") if reserved else None
    journal = await SqliteJournal.open(folder / "journal.db", reserve=reserve)
    await journal.append([Record("", 0, 0, 1, b"", RecordKind.EPOCH)])
    seq, refusals = 0, 0
    while refusals < 2:  # after the first one there may be what the log took before it was written back
        try:
            await journal.append([Record("s", seq + 1, 1, 1, bytes(60_000))])
            seq += 1
        except StorageFull:
            refusals += 1
    fill(folder, 0)
    drain(folder, room)
    again = 0
    with suppress(StorageFull):
        for _ in range(3):
            await journal.append([Record("s", seq + again + 1, 1, 1, bytes(1_000))])
            again += 1
            await journal._owner.run(journal._database.idle)  # as it does by itself after each pause
    await journal.close()
    journal = await SqliteJournal.open(folder / "journal.db", reserve=reserve)
    found = len(await journal.read("s"))
    await journal.close()
    talk.say("did", {"acknowledged": seq + again, "found": found, "again": again})


async def looks(talk: Talk, folder: Path) -> None:
    """Reads a folder whose owner has ended, on a full disk; its temporary files are elsewhere."""
    async with Runtime.open(settings_of(folder)) as runtime:
        record, _ = await runtime.create(read_create(creation(0, 1)))
    fill(folder, 0)
    async with Reader.open(folder / "data") as reader:
        found = await reader.page(CatalogQuery())
        _, state = await reader.state(record["session_id"])
        talk.say("did", [one["session_id"] for one in found] == [record["session_id"]] and bool(state))


async def verifies(
    talk: Talk, folder: Path, *, seed: int, asked: list[list[int]], began: list[Any], told: dict[str, Any]
) -> None:
    """Goes on where each reporter broke off, until all sessions are archived; reads everything and compares."""
    found: Counter[str] = Counter()
    async with opened(settings_of(folder), Counter()) as runtime:
        began_at = time.monotonic()
        seen: set[tuple[int, int]] = set()
        for number, round_, session_id in began:
            seen.add((number, round_))
            await _finish(talk, runtime, seed, number, round_, session_id, told, found)
        # A creation whose answer never came: sent again it tells.
        for number, round_ in asked:
            if (number, round_) in seen:
                continue
            record, was_there = await runtime.create(read_create(creation(number, round_)))
            found["unknown_creations"] += was_there
            began.append((number, round_, record["session_id"]))
            await _finish(talk, runtime, seed, number, round_, record["session_id"], told, found)
        resolved_s = time.monotonic() - began_at
        archived_s = await archived(runtime, PATIENCE_S)
        if archived_s is None:
            talk.say("stuck", f"not archived: {runtime.statistics().tiering}")
        await _compare(talk, runtime, seed, began, told, found)
    async with opened(settings_of(folder), Counter()) as runtime:
        await _compare(talk, runtime, seed, began, told, found)
    talk.say("verified", {"found": found, "resolved_s": resolved_s, "archived_s": archived_s})


async def _finish(
    talk: Talk,
    runtime: Runtime,
    seed: int,
    number: int,
    round_: int,
    session_id: str,
    told: dict[str, list[tuple[int, int, bool]]],
    found: "Counter[str]",
) -> None:
    last = max([n for n, _, _ in told.get(session_id, ())], default=0)
    batches = script(seed, number, round_)
    if last == batches[-1][-1]["n"]:
        return
    for batch in batches:
        if batch[-1]["n"] < last:
            continue
        commands = [read_command(one) for one in batch]
        try:
            # Refused only where more is sent at once than compaction carries away.
            while True:
                try:
                    answers = await runtime.ask_batch(session_id, commands)
                    break
                except StorageFull:
                    found["refused_without_a_fault"] += 1
                    await anyio.sleep(AGAIN_S)
        except CallerError as error:
            talk.say("wrong", f"{session_id} {batch[0]}: {error!r}")
            return
        for command, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Done):
                if command["n"] > last and answer.duplicate:
                    found["unknown_done"] += 1
                told.setdefault(session_id, []).append((command["n"], answer.seq, answer.duplicate))
            elif not (isinstance(answer, SessionSealed) and command["type"].startswith("session.")):
                talk.say("wrong", f"{session_id} n={command['n']} {command['type']}: {answer!r}")


async def _compare(
    talk: Talk,
    runtime: Runtime,
    seed: int,
    began: list[Any],
    told: dict[str, list[tuple[int, int, bool]]],
    found: "Counter[str]",
) -> None:
    for number, round_, session_id in began:
        try:
            events = [json.loads(line.line) async for line in runtime.events(session_id)]
        except SojournError as error:
            found["unreadable"] += 1
            talk.say("wrong", f"{session_id} cannot be read: {error!r}")
            continue
        held: dict[int, list[int]] = {}
        for event in events:
            if event["cause"] is not None and event["cause"].get("source") == "prove":
                held.setdefault(event["cause"]["n"], []).append(event["seq"])
        sent = [command["n"] for batch in script(seed, number, round_) for command in batch]
        sealed_by_us = {sent[-1]} if script(seed, number, round_)[-1][0]["type"] == "session.seal" else set()
        bad = {
            "lost": sum(n not in held for n, _, _ in told.get(session_id, ())),
            "missing": len(set(sent) - held.keys() - sealed_by_us),
            "doubled": sum(len(seqs) > 1 for seqs in held.values()),
            "misplaced": sum(
                n in held and seq != held[n][0] and not duplicate
                for n, seq, duplicate in told.get(session_id, ())
            ),
            "seq_gaps": sum(event["seq"] != seq for seq, event in enumerate(events, 1))
            + (not events or events[-1]["type"] != "session.sealed"),
        }
        found["events"] += len(events)
        for name, count in bad.items():
            found[name] += count
            if count:
                talk.say("wrong", f"{session_id}: {name} {count}")


PROGRAMS: dict[str, Callable[..., Awaitable[None]]] = {
    program.__name__: program for program in (fills, looks, starts, reports, small_room, verifies)
}
