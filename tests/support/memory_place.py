"""A mirror in memory in a runtime: a `MirrorPlace` whose server outlives the runtimes that use it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
from attrs import define, evolve, field

from sojourn.actors.errors import StoreUnavailable
from sojourn.actors.ports import Mirror
from sojourn.runtime.opening import SystemClock, open_stores
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.stores.memory import MemoryMirror

from .wait import await_until


@define(eq=False)
class MemoryPlace:
    """See runtime.mirror_place.MirrorPlace."""

    mirror: MemoryMirror = field(factory=MemoryMirror)
    private: bool = False
    owner: str = "here"
    away: bool = False

    async def connect(self) -> Mirror:
        if self.away:
            raise StoreUnavailable("it is away")
        return self.mirror

    async def epoch(self, known: int) -> int:
        return 1_000 if self.away else await self.mirror.epoch()

    async def watch(self, started: Callable[[], None]) -> None:
        started()
        await anyio.sleep_forever()

    async def close(self) -> None:
        """It stays."""


@asynccontextmanager
async def mirrored(
    settings: Settings, place: MemoryPlace, *, connected: bool = True
) -> AsyncIterator[Runtime]:
    """`Runtime.open` with this mirror, connected or not."""
    async with open_stores(settings) as stores:
        with_mirror = evolve(stores, mirror=place)  # type: ignore[arg-type]
        async with Runtime.over(settings, with_mirror, SystemClock()) as runtime:
            if connected:
                await level(runtime)
            yield runtime


async def level(runtime: Runtime) -> None:
    """Wait until everything that is durable is mirrored."""

    def is_level() -> bool:
        mirror = runtime.mirror_statistics()
        return mirror is not None and mirror.state == "level"

    await await_until(is_level)
