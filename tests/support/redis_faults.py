"""What can befall the server under a mirror, or the way to it, while a fleet reports.

Each fault is a coroutine that tells the fleet right before it begins and returns once the server answers as before.
"""

import asyncio
import random
import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from attrs import field, frozen

from sojourn.actors.session.model import Ack

from .fleet import Fleet
from .proxy import Proxy
from .redis import Server
from .wait import await_until

KEEPING = ("nothing", "rdb", "aof")


Lasting = Callable[[Fleet], Awaitable[None]]


def for_s(seconds: float) -> Lasting:
    """A fault that lasts so long."""

    async def last(fleet: Fleet) -> None:
        await asyncio.sleep(seconds)

    return last


async def until_refused(fleet: Fleet) -> None:
    """A fault that lasts until somebody was refused `mirrored` because of it. Whoever reports so may be waiting to see
    that an answer was true, so one that rests asks for it, too."""
    asker = fleet.idle[0]
    asker.ack = Ack.MIRRORED
    try:
        while not fleet.counts["refused"]:
            await asker.tell()
    finally:
        asker.ack = Ack.DURABLE


@frozen
class Fault:
    """`strike` gets the fleet. `name` says what kind it is."""

    name: str
    strike: Callable[[Fleet], Awaitable[None]] = field(repr=False)


def _more_than(count: Callable[[], int], before: int) -> bool:
    return count() > before


async def _run(server: Server, *command: Any) -> Any:
    answer = await asyncio.to_thread(server.run, *command)
    if isinstance(answer, Exception):
        raise answer
    return answer


# -- the server ----------------------------------------------------------------------------------------------------


def killed(server: Server, keeping: str, away: Lasting) -> Fault:
    """SIGKILL, and a new one on the same socket: with nothing, with a dump taken a moment before (`rdb`), or with the log
    that it synced every second (`aof`)."""

    async def strike(fleet: Fleet) -> None:
        await _prepare(server, keeping)
        await fleet.stir()  # so what is kept is older than what stands, of sessions that rest afterwards too
        fleet.strike(loses=True)
        await asyncio.to_thread(server.kill)
        with fleet.away():
            await away(fleet)
            if keeping == "nothing":
                _forget(server.folder)
            _set(server.command, "--appendonly", "yes" if keeping == "aof" else "no")
        await asyncio.to_thread(server.start)

    return Fault(f"killed, with {keeping}", strike)


async def _prepare(server: Server, keeping: str) -> None:
    _forget(server.folder)
    await _run(server, "CONFIG", "SET", "appendonly", "yes" if keeping == "aof" else "no")
    if keeping == "rdb":
        await _run(server, "SAVE")
    if keeping == "aof":
        await await_until(lambda: server.info("aof_rewrite_in_progress") == "0")
        await await_until(lambda: server.info("aof_rewrite_scheduled") == "0")


def _forget(folder: Path) -> None:
    (folder / "dump.rdb").unlink(missing_ok=True)
    shutil.rmtree(folder / "appendonlydir", ignore_errors=True)


def _set(command: list[str], option: str, value: str) -> None:
    if option in command:
        command[command.index(option) + 1] = value
    else:
        command += [option, value]


def stopped(server: Server, lasts: Lasting) -> Fault:
    """SIGSTOP: its connections stay, and nothing is answered."""

    async def strike(fleet: Fleet) -> None:
        process = psutil.Process(server.process.pid)
        fleet.strike(loses=False)
        with server.stopped():
            await await_until(lambda: process.status() == psutil.STATUS_STOPPED)
            with fleet.away():
                await lasts(fleet)

    return Fault("stopped", strike)


def slept(server: Server, lasts_s: float) -> Fault:
    """DEBUG SLEEP: one command holds it up."""

    async def strike(fleet: Fleet) -> None:
        fleet.strike(loses=False)
        await _run(server, "DEBUG", "SLEEP", lasts_s)

    return Fault("held up by a command", strike)


def flushed(server: Server) -> Fault:
    async def strike(fleet: Fleet) -> None:
        fleet.strike(loses=True)
        await _run(server, "FLUSHALL")

    return Fault("flushed", strike)


def disconnected(server: Server, times: int) -> Fault:
    """CLIENT KILL of every connection, again and again."""

    async def strike(fleet: Fleet) -> None:
        fleet.strike(loses=False)
        for _ in range(times):
            await _run(server, "CLIENT", "KILL", "TYPE", "normal")
            await await_until(
                partial(_more_than, partial(getattr, fleet, "acknowledged"), fleet.acknowledged)
            )

    return Fault("connections killed", strike)


def full(server: Server, lasts: Lasting) -> Fault:
    """maxmemory is below what it holds, and nothing is evicted: it refuses what would add."""

    async def strike(fleet: Fleet) -> None:
        fleet.strike(loses=False)
        await _run(server, "CONFIG", "SET", "maxmemory", "1mb")
        try:
            with fleet.away():
                await lasts(fleet)
        finally:
            await _run(server, "CONFIG", "SET", "maxmemory", "0")

    return Fault("full", strike)


# -- the way to it -------------------------------------------------------------------------------------------------


def delayed(proxy: Proxy, delay_s: float, lasts: Lasting) -> Fault:
    async def strike(fleet: Fleet) -> None:
        fleet.strike(loses=False)
        with _while(proxy, "delay_s", delay_s):
            await lasts(fleet)

    return Fault("delayed", strike)


def cut(proxy: Proxy, times: int, rng: random.Random) -> Fault:
    """The connection is cut in the middle of an answer, again and again."""

    async def strike(fleet: Fleet) -> None:
        fleet.strike(loses=False)
        for _ in range(times):
            before, proxy.cut_after_bytes = proxy.cuts, rng.randrange(1, 400)
            await await_until(partial(_more_than, partial(getattr, proxy, "cuts"), before))

    return Fault("cut in an answer", strike)


def swallowed(proxy: Proxy, times: int, rng: random.Random) -> Fault:
    """From the middle of an answer on nothing comes any more, and the connection stays open."""

    async def strike(fleet: Fleet) -> None:
        fleet.strike(loses=False)
        for _ in range(times):
            before, proxy.swallow_after_bytes = proxy.swallowed, rng.randrange(1, 400)
            await await_until(partial(_more_than, partial(getattr, proxy, "swallowed"), before))

    return Fault("swallowed", strike)


def hung(proxy: Proxy, lasts: Lasting) -> Fault:
    """Connections are taken, and nothing is carried, as by a firewall that forgot them."""

    async def strike(fleet: Fleet) -> None:
        fleet.strike(loses=False)
        with _while(proxy, "hangs", True), fleet.away():
            await lasts(fleet)

    return Fault("hung", strike)


def refused(proxy: Proxy, lasts: Lasting) -> Fault:
    """Every connection is reset, and so is each new one."""

    async def strike(fleet: Fleet) -> None:
        fleet.strike(loses=False)
        with _while(proxy, "refuses", True):
            proxy.cut_all()
            with fleet.away():
                await lasts(fleet)

    return Fault("refused", strike)


@contextmanager
def _while(proxy: Proxy, name: str, value: Any) -> Iterator[None]:
    before = getattr(proxy, name)
    setattr(proxy, name, value)
    try:
        yield
    finally:
        setattr(proxy, name, before)


def none(lasts: Lasting) -> Fault:
    """Nothing befalls it: what all else is to be compared with."""

    async def strike(fleet: Fleet) -> None:
        fleet.strike(loses=False)
        await lasts(fleet)

    return Fault("none", strike)
