"""A network of our own before a server: it delays, cuts an answer in its middle, swallows what was sent, and hangs.

It keeps to what TCP allows: bytes arrive in order or not at all, and after the first that does not arrive none does.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from attrs import define, field

CHUNK_BYTES = 65_536
CHUNKS_UNDER_WAY_MAX = 64  # for each direction of a connection, while they are delayed


@define(eq=False)
class Proxy:
    """A way to the unix socket `target`. What is set counts for every connection, those that stand included.

    Attributes:
        delay_s: so long every byte is on its way, in both directions.
        cut_after_bytes: the connection whose answers reach so many bytes next is cut there; then it is None again.
        swallow_after_bytes: the connection whose answers reach so many bytes next stays open, and nothing more comes
            through it in either direction; then it is None again.
        hangs: connections are taken, and nothing is carried.
        refuses: connections are ended as soon as they are made.
        cuts, swallowed: how often that happened.
    """

    target: Path
    port: int = 0
    delay_s: float = 0.0
    cut_after_bytes: int | None = None
    swallow_after_bytes: int | None = None
    hangs: bool = False
    refuses: bool = False
    cuts: int = 0
    swallowed: int = 0
    _ways: "set[_Way]" = field(factory=set)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def cut_all(self) -> None:
        """Every connection that stands is reset, what it carried with it."""
        for way in list(self._ways):
            way.reset()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until an end is closed or it is cut."""
        if self.refuses:
            writer.transport.abort()
            return
        answers, requests = await asyncio.open_unix_connection(self.target)
        way = _Way(self, (writer, requests))
        self._ways.add(way)
        try:
            directions = [
                asyncio.create_task(way.forward(reader, requests, answers=False)),
                asyncio.create_task(way.forward(answers, writer, answers=True)),
                asyncio.create_task(way.ended.wait()),
            ]
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
        finally:
            self._ways.discard(way)
            way.reset()


@define(eq=False)
class _Way:
    """One connection. `silent`: it is open, and carries nothing any more."""

    proxy: Proxy
    ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    silent: bool = False
    ended: asyncio.Event = field(factory=asyncio.Event)

    def reset(self) -> None:
        self.ended.set()
        for end in self.ends:
            end.transport.abort()

    async def forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        """Until the end of what comes, or the cut."""
        under_way: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue(CHUNKS_UNDER_WAY_MAX)
        arriving = asyncio.create_task(self._arrive(under_way, writer, answers=answers))
        try:
            loop = asyncio.get_running_loop()
            while data := await reader.read(CHUNK_BYTES):
                await under_way.put((loop.time() + self.proxy.delay_s, data))
            await under_way.put(None)
            await arriving
        except (ConnectionError, OSError):
            pass  # an end went away, which is its right
        finally:
            arriving.cancel()
            await asyncio.gather(arriving, return_exceptions=True)

    async def _arrive(
        self,
        under_way: "asyncio.Queue[tuple[float, bytes] | None]",
        writer: asyncio.StreamWriter,
        *,
        answers: bool,
    ) -> None:
        proxy, loop = self.proxy, asyncio.get_running_loop()
        while (chunk := await under_way.get()) is not None:
            due, data = chunk
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            if proxy.hangs or self.silent:
                self.silent = True
                continue
            if answers and proxy.cut_after_bytes is not None:
                proxy.cut_after_bytes -= len(data)
                if proxy.cut_after_bytes <= 0:
                    data = data[: len(data) + proxy.cut_after_bytes]
                    proxy.cut_after_bytes, proxy.cuts = None, proxy.cuts + 1
                    writer.write(data)
                    await writer.drain()
                    self.ended.set()
                    return
            if answers and proxy.swallow_after_bytes is not None:
                proxy.swallow_after_bytes -= len(data)
                if proxy.swallow_after_bytes <= 0:
                    data = data[: len(data) + proxy.swallow_after_bytes]
                    proxy.swallow_after_bytes, proxy.swallowed = None, proxy.swallowed + 1
                    self.silent = True
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def proxied(target: Path) -> AsyncIterator[Proxy]:
    """A proxy that listens on a port of this machine."""
    proxy = Proxy(target)
    carrying: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        carrying.add(task)
        try:
            await proxy.carry(reader, writer)
        except OSError:
            writer.transport.abort()  # the server is not there: nor is this way
        finally:
            carrying.discard(task)

    listening = await asyncio.start_server(carry, "127.0.0.1", 0)
    proxy.port = listening.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listening.close()
        proxy.cut_all()
        await asyncio.gather(*carrying, return_exceptions=True)
