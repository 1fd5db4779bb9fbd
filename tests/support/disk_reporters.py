"""Reporters of a runtime whose disk fills up, or fails: what they send, whom they tell what they were told, and the disk that
is filled under them."""

import json
import os
import random
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from attrs import define, evolve, field

from sojourn.actors.errors import (
    DeadlineExceeded,
    MailboxFull,
    NotOpen,
    SessionSealed,
    SojournError,
    Stopped,
    StorageFull,
    StoreError,
)
from sojourn.actors.ports import CatalogQuery
from sojourn.actors.session.actor import Done
from sojourn.actors.session.wire import read_command, read_create
from sojourn.runtime.opening import SystemClock, open_stores
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.stores.reserve import free_bytes

from .killing import METHODS, kind_of
from .reporting import some_command

SESSIONS = 20
AGAIN_S = 0.1
READ_S = 15.0


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
        hooked = {method.split(".")[0] for method in METHODS[self._store]}
        if name not in hooked and name != "put_all":
            return inner

        async def counted(*args: Any, **kwargs: Any) -> Any:
            try:
                return await inner(*args, **kwargs)
            except StoreError:
                if name == "put_all":
                    self._faults.update({f"{self._store}.put.{kind_of(one)}" for one, _ in args[0]})
                else:
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
    batches += [
        [some_command(rng, 2_000) for _ in range(rng.choice((1, 1, 3, 20)))]
        for _ in range(rng.randrange(5, 30))
    ]
    batches.append([{"type": "session.complete", "outcome": "passed"}])
    if rng.random() < 0.5:
        batches.append([{"type": "session.seal"}])
    n = 0
    for batch in batches:
        for command in batch:
            n += 1
            command |= {"source": "prove", "n": n}
    return batches


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
