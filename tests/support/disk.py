"""A runtime under reporting sessions whose disk fills up, or fails: the program, and the process that watches it.

`python -m tests.support.disk FOLDER` reads jobs from its standard input, JSON, one a line, and prints a result for each.
The watcher keeps what reporters were told, where no fault reaches; the runtime and its reporters are a child of it that
tells by a socket, and so by none of the system calls that are made to fail. A second child, without faults, then goes on
where the reporters broke off, and reads everything back.
"""

import json
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import structlog
from attrs import define, evolve, field

from sojourn.actors.errors import (
    CallerError,
    DeadlineExceeded,
    MailboxFull,
    NotOpen,
    SessionSealed,
    SojournError,
    Stopped,
    StorageFull,
    StoreError,
)
from sojourn.actors.ports import CatalogQuery, Record, RecordKind
from sojourn.actors.session.actor import Done
from sojourn.actors.session.wire import read_command, read_create
from sojourn.runtime.mirror_place import MirrorPlace
from sojourn.runtime.opening import SystemClock, open_stores
from sojourn.runtime.reader import Reader
from sojourn.runtime.rebuild import rebuild_catalog
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.stores.archive import open_archive
from sojourn.runtime.stores.journal_sqlite import SqliteJournal
from sojourn.runtime.stores.reserve import Reserve, free_bytes

from .killing import METHODS, eager, kind_of

SESSIONS = 20
AGAIN_S = 0.1
PATIENCE_S = 60.0
READ_S = 15.0
CHILD_S = 240.0
FULL_S = 0.3  # how long the disk stays full
REFUSES_S = 1.5  # how long a full disk is waited for to be met
FALSE_S = (
    2.5  # after room returned for so long, nothing is refused any more: twice a probe's pause, and the work
)
# What the runtime imports as late as it opens a folder: here, so that no import is among the calls that fail.
PRELOADED = (rebuild_catalog, open_archive, MirrorPlace)
POINTS = tuple(
    f"{store}.{method}" for store, methods in METHODS.items() for method in methods if "delete" not in method
)


@define(eq=False)
class Talk:
    """What the runtime's process tells the watcher: documents, a line each."""

    end: socket.socket

    def say(self, *document: Any) -> None:
        self.end.sendall(json.dumps(document).encode() + b"\n")


class Counted:
    """A store whose failures are counted by method and kind."""

    def __init__(self, inner: Any, store: str, faults: "Counter[str]") -> None:
        self._inner = inner
        self._store = store
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self._inner, name)
        if name not in {method.split(".")[0] for method in METHODS[self._store]}:
            return inner

        async def counted(*args: Any, **kwargs: Any) -> Any:
            try:
                return await inner(*args, **kwargs)
            except StoreError:
                kind = f".{kind_of(args[0])}" if self._store in ("objects", "archive") else ""
                self._faults[f"{self._store}.{name}{kind}"] += 1
                raise

        return counted


@asynccontextmanager
async def opened(settings: Settings, faults: "Counter[str]") -> AsyncIterator[Runtime]:
    """`Runtime.open` over counted stores."""
    async with open_stores(settings) as stores:
        names = ("journal", "catalog", "objects", "archive")
        counted = evolve(stores, **{name: Counted(getattr(stores, name), name, faults) for name in names})  # type: ignore[arg-type]
        async with Runtime.over(settings, counted, SystemClock()) as runtime:
            yield runtime


# -- reporters -----------------------------------------------------------------------------------------------------


def creation(number: int, round_: int) -> dict[str, Any]:
    """The command by which a reporter creates its nth session."""
    return {"plan": "prove", "title": f"{number}.{round_}", "command_id": f"create-{number}-{round_}"}


def script(seed: int, number: int, round_: int) -> list[list[dict[str, Any]]]:
    """What a reporter sends to its nth session: batches, every command with its n. The same again for the same numbers."""
    rng = random.Random(f"{seed} {number} {round_}")
    batches: list[list[dict[str, Any]]] = [[{"type": "session.start"}]]
    batches += [[_event(rng) for _ in range(rng.choice((1, 1, 3, 20)))] for _ in range(rng.randrange(5, 30))]
    batches.append([{"type": "session.complete", "outcome": "passed"}])
    if rng.random() < 0.5:
        batches.append([{"type": "session.seal"}])
    n = 0
    for batch in batches:
        for command in batch:
            n += 1
            command |= {"source": "prove", "n": n}
    return batches


def _event(rng: random.Random) -> dict[str, Any]:
    return dict(
        rng.choice(
            (
                {"type": "log.append", "stream": "stdout", "text": "x" * rng.randrange(2_000)},
                {"type": "progress.report", "done": rng.randrange(1000)},
                {
                    "type": "result.record",
                    "case_id": f"c{rng.randrange(50)}",
                    "outcome": "passed",
                    "duration_s": 0.1,
                },
            )
        )
    )


async def _create(number: int, round_: int, runtime: Runtime) -> tuple[dict[str, Any], bool]:
    return await runtime.create(read_create(creation(number, round_)))


async def _change_title(session_id: str, runtime: Runtime) -> dict[str, Any]:
    return await runtime.set_facts(session_id, title="changed")


@define(eq=False)
class World:
    """The runtime as its reporters know it.

    Attributes:
        refusals: when an ask was refused for want of room, on the monotonic clock, and when it had been sent.
        acknowledged_at: when each reporter was last told of something new.
    """

    talk: Talk
    seed: int
    sessions: int = SESSIONS
    runtime: Runtime | None = None
    stopping: bool = False
    rounds_max: int = 1 << 30
    session_ids: dict[int, str] = field(factory=dict)
    acknowledged: int = 0
    acknowledged_at: dict[int, float] = field(factory=dict)
    refused: "Counter[str]" = field(factory=Counter)
    refusals: list[tuple[float, float]] = field(factory=list)
    reporting: int = 0

    async def until_taken(self, ask: Callable[[Runtime], Awaitable[Any]]) -> Any:
        """Again and again, while it is refused or its outcome is unknown."""
        while True:
            sent_at = time.monotonic()
            try:
                if self.runtime is not None:
                    return await ask(self.runtime)
            except (NotOpen, Stopped):
                pass  # it is opened again, or the run is over
            except (StoreError, MailboxFull, DeadlineExceeded) as error:
                self.refused[error.code] += 1
                if isinstance(error, StorageFull):
                    self.refusals.append((time.monotonic(), sent_at))
            await anyio.sleep(AGAIN_S)

    async def live(self, number: int) -> None:
        """Report one session after another."""
        self.reporting += 1
        round_ = 0
        while not self.stopping and round_ < self.rounds_max:
            round_ += 1
            self.talk.say("asked", number, round_)
            record, _ = await self.until_taken(partial(_create, number, round_))
            session_id = self.session_ids[number] = record["session_id"]
            self.talk.say("began", number, round_, session_id)
            for batch in script(self.seed, number, round_):
                await self._send(number, session_id, batch)
            if batch[0]["type"] == "session.seal":
                await self.until_taken(partial(_change_title, session_id))
        self.reporting -= 1

    async def _send(self, number: int, session_id: str, batch: list[dict[str, Any]]) -> None:
        commands = [read_command(one) for one in batch]
        answers = await self.until_taken(lambda runtime: runtime.ask_batch(session_id, commands))
        for command, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Done):
                self.talk.say("told", session_id, command["n"], answer.seq, answer.duplicate)
                self.acknowledged += 1
            elif not (isinstance(answer, SessionSealed) and command["type"] == "session.seal"):
                # The runtime seals by itself after a moment, and may have been quicker.
                self.talk.say("wrong", f"{session_id} n={command['n']} {command['type']}: {answer!r}")
        self.acknowledged_at[number] = time.monotonic()

    async def moves(self, since: float, deadline_s: float) -> float | None:
        """Seconds from `since` until every reporter has been told of something newer; None: not within the deadline."""
        until = since + deadline_s
        while time.monotonic() < until:
            if all(self.acknowledged_at.get(number, 0.0) > since for number in range(self.sessions)):
                return max(self.acknowledged_at.values()) - since
            await anyio.sleep(0.01)
        return None


async def archived(runtime: Runtime, deadline_s: float) -> float | None:
    """Seconds until every session is archived; None: not within the deadline."""
    began = time.monotonic()
    while time.monotonic() < began + deadline_s:
        query = CatalogQuery(limit=1, tier=frozenset({"active", "recent"}))
        with suppress(StoreError):
            if not await runtime.page(query):
                return time.monotonic() - began
        await anyio.sleep(0.05)
    return None


async def read_all(runtime: Runtime, session_ids: list[str], talk: Talk) -> float:
    """Reads go on, whatever becomes of changes. Returns the seconds that the slowest took."""
    slowest = 0.0
    for session_id in session_ids:
        began = time.monotonic()
        try:
            with anyio.fail_after(READ_S):
                seq, _ = await runtime.state(session_id)
                found = [line.seq async for line in runtime.events(session_id)]
                await runtime.record(session_id)
        except (SojournError, TimeoutError) as error:
            talk.say("read_failed", f"{session_id}: {error!r}")
            continue
        if found[: max(seq, 0)] != list(range(1, seq + 1)):
            talk.say("read_failed", f"{session_id}: state of seq {seq}, {len(found)} events")
        slowest = max(slowest, time.monotonic() - began)
    try:
        with anyio.fail_after(READ_S):
            await runtime.page(CatalogQuery(limit=100))
    except (SojournError, TimeoutError) as error:
        talk.say("read_failed", f"list: {error!r}")
    return slowest


# -- the disk ------------------------------------------------------------------------------------------------------


def fill(folder: Path, leave_bytes: int) -> None:
    """A ballast file, so that so much room is left."""
    descriptor = os.open(folder / "ballast", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        while True:
            more = free_bytes(folder) - leave_bytes
            if more <= 0:
                return
            with suppress(OSError):  # somebody else took a page
                os.posix_fallocate(descriptor, size, more)
                return
    finally:
        os.close(descriptor)


def drain(folder: Path, bytes_: int | None = None) -> None:
    """The ballast goes, or so much of it."""
    path = folder / "ballast"
    with suppress(FileNotFoundError):
        if bytes_ is None:
            path.unlink()
        else:
            os.truncate(path, max(0, path.stat().st_size - bytes_))


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


# -- the watcher ---------------------------------------------------------------------------------------------------


@define(eq=False)
class Watched:
    """What a child has said, and what reporters were told by all of them."""

    asked: list[list[int]] = field(factory=list)
    began: dict[tuple[int, int], str] = field(factory=dict)
    told: dict[str, list[tuple[int, int, bool]]] = field(factory=dict)
    said: dict[str, list[Any]] = field(factory=dict)

    def take(self, line: bytes) -> None:
        kind, *rest = json.loads(line)
        if kind == "asked":
            self.asked.append(rest)
        elif kind == "told":
            session_id, n, seq, duplicate = rest
            self.told.setdefault(session_id, []).append((n, seq, duplicate))
        elif kind == "began":
            number, round_, session_id = rest
            self.began[number, round_] = session_id
        else:
            self.said.setdefault(kind, []).append(rest[0] if len(rest) == 1 else rest)

    @property
    def acknowledged(self) -> int:
        return sum(map(len, self.told.values()))


def run_child(
    watched: Watched,
    program: str,
    folder: Path,
    *,
    inject: str | None = None,
    **options: Any,
) -> tuple[int | None, list[str]]:
    """Runs a program in a child until it ends, and takes in what it says.

    Args:
        inject: `SYSCALL:error=...:when=...`, for strace, which counts by thread from before the folder is opened.

    Returns:
        Its exit code, negative for a signal, None where it took so long that it was killed; and the calls that were made to fail.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _child(PROGRAMS[program], Talk(theirs), folder, options)
    theirs.close()
    tracer, log = None, folder / "strace.log"
    if inject is not None:
        tracer = _trace(pid, inject, log)
    ours.sendall(b"go")
    deadline = time.monotonic() + CHILD_S
    rest = b""
    code: int | None = None
    while True:
        readable, _, _ = select.select([ours], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            break
        data = ours.recv(1 << 20)
        if not data:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            break
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            watched.take(line)
    ours.close()
    if tracer is None:
        return code, []
    tracer.wait(10)
    return code, [line for line in log.read_text(errors="replace").splitlines() if "(INJECTED)" in line]


def _trace(pid: int, inject: str, log: Path) -> "subprocess.Popen[str]":
    strace = shutil.which("strace")
    assert strace is not None, "strace is not installed"
    syscall = inject.split(":")[0]
    tracer = subprocess.Popen(
        [
            strace,
            "-f",
            "-y",
            "-o",
            str(log),
            "-e",
            f"trace={syscall}",
            "-e",
            f"inject={inject}",
            "-p",
            str(pid),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tracer.stderr is not None
    line = tracer.stderr.readline()
    assert "attached" in line, line
    return tracer


def _child(
    program: Callable[..., Awaitable[None]], talk: Talk, folder: Path, options: dict[str, Any]
) -> None:
    logged: Counter[str] = Counter()

    def count(_: Any, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        logged[event["event"]] += 1
        error = event.get("exc_info")
        if isinstance(error, BaseException) and level != "debug":
            talk.say("traceback", event["event"], "".join(traceback.format_exception(error))[-3000:])
        raise structlog.DropEvent

    code = 1
    try:
        structlog.configure(processors=[count])
        assert talk.end.recv(2) == b"go"

        async def main() -> None:
            await program(talk, folder, **options)

        anyio.run(main)
        code = 0
    except BaseException as error:  # noqa: BLE001 - whatever it is, the watcher is told
        talk.say("crashed", "".join(traceback.format_exception(error))[-4000:])
    finally:
        with suppress(OSError):
            talk.say("logged", logged)
        os._exit(code)


def run_job(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """One job, in an emptied folder: `kind` names the program, `inject` a fault for strace, the rest are its options."""
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    watched = Watched()
    began = time.monotonic()
    options = {name: value for name, value in job.items() if name not in ("kind", "inject")}
    program = job["kind"]
    injected: list[str] = []
    code: int | None
    if program == "starts":
        code = 0
        for number, leave in enumerate(options.pop("leave")):
            ended, _ = run_child(watched, program, folder, leave=leave, number=number, **options)
            drain(folder)
            if ended != (-signal.SIGKILL if number % 3 == 0 else 0):
                code = ended
    else:
        code, injected = run_child(watched, program, folder, inject=job.get("inject"), **options)
    acknowledged = watched.acknowledged
    verified = 0 if "seed" not in job else _verify(watched, folder, job["seed"])
    return {
        "job": job,
        "code": code,
        "injected": [*_files(injected)],
        "verified_code": verified,
        "acknowledged": acknowledged,
        "sessions": len(watched.began),
        "took_s": round(time.monotonic() - began, 2),
        "said": watched.said,
    }


def _verify(watched: Watched, folder: Path, seed: int) -> int | None:
    began = [(*numbers, session_id) for numbers, session_id in watched.began.items()]
    code, _ = run_child(
        watched, "verifies", folder, seed=seed, asked=watched.asked, began=began, told=watched.told
    )
    return code


def _files(calls: list[str]) -> Iterator[str]:
    """For each call that was made to fail: `SYSCALL KIND`, where the kind is of the file it was about."""
    for call in calls:
        syscall = re.sub(r"^\d+\s+(<\.\.\. )?", "", call).split("(")[0].split()[0]
        yield f"{syscall} {_kind(call)}"


def _kind(call: str) -> str:
    for pattern, kind in _KINDS:
        if re.search(pattern, call):
            return kind
    return "other"


_KINDS = (
    (r"journal\.db-wal", "journal log"),
    (r"journal\.db-shm", "journal shm"),
    (r"journal\.db", "journal file"),
    (r"catalog\.db-wal", "catalog log"),
    (r"catalog\.db-shm", "catalog shm"),
    (r"catalog\.db", "catalog file"),
    (r"/reserve", "reserve"),
    (r"/archive/", "archive"),
    (r"snapshot-", "snapshot"),
    (r"events-", "segment"),
    (r"manifest", "manifest"),
    (r"facts", "facts"),
    (r"/sessions/[^\"]*\.tmp-", "object"),
    (r"/sessions", "objects folder"),
    (r"/lock|format", "lock and format"),
    (r"/data[\">]", "data folder"),
)


def main(folder: Path) -> None:
    anyio.run(anyio.sleep, 0)  # as PRELOADED: the event loop's parts
    for line in sys.stdin:
        print(json.dumps(run_job(folder, json.loads(line))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
