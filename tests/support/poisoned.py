"""A runtime over stores that outlive it, for what crashes its sessions."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from attrs import define, field

from sojourn.actors.session.commands import Command
from sojourn.actors.session.wire import read_command, read_create
from sojourn.runtime.opening import Stores, SystemClock
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.stores.memory import MemoryCatalog, MemoryObjects

from .faulty import FaultyJournal
from .poison import Fuse


def log_line(text: str = "x", **identity: Any) -> Command:
    return read_command({"type": "log.append", "stream": "stdout", "text": text, **identity})


@define(eq=False)
class World:
    """Stores that outlive their runtimes, and a fuse that is armed."""

    settings: Settings
    fuse: Fuse
    stores: Stores = field(
        factory=lambda: Stores(
            journal=FaultyJournal(),
            catalog=MemoryCatalog(),
            objects=MemoryObjects(),
            archive=MemoryObjects(),
        )
    )

    @asynccontextmanager
    async def runtime(self) -> AsyncIterator[Runtime]:
        async with Runtime.over(self.settings, self.stores, SystemClock()) as runtime:
            yield runtime


async def new_session(runtime: Runtime) -> str:
    record, _ = await runtime.create(read_create({}))
    session_id: str = record["session_id"]
    await runtime.ask(session_id, read_command({"type": "session.start"}))
    return session_id


async def types(runtime: Runtime, session_id: str) -> list[str]:
    return [line.type async for line in runtime.events(session_id)]
