"""Writing objects that must be there: what was written is read back and compared."""

from collections.abc import Sequence

from ..actors.errors import ObjectMissing, StoreUnavailable
from ..actors.ports import Objects

# So much of a shipment is held in memory, and one object that passes it.
SHIPMENT_BYTES_MAX = 1024 * 1024


async def put_and_read_back(objects: Objects, name: str, data: bytes) -> None:
    """Raises StoreUnavailable where the store gives something else back than it took."""
    await objects.put(name, data)
    if await objects.get(name) != data:
        raise differs(name)


def differs(name: str) -> StoreUnavailable:
    """What to raise for an object that is not what was written."""
    return StoreUnavailable(f"{name} does not read back as it was written; check the disk, or the archive")


async def put_one_by_one(objects: Objects, items: Sequence[tuple[str, bytes]]) -> None:
    """`Objects.put_all` for a store that gains nothing by being given them together."""
    for name, data in items:
        await put_unless_there(objects, name, data)


class Shipment:
    """What a move writes: small objects wait for each other and travel together, the one that says they are complete last.

    Nothing is there before `add` has had enough of them, or `close` returns.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._waiting: list[tuple[str, bytes]] = []
        self._bytes = 0

    async def add(self, name: str, data: bytes) -> None:
        """Raises as `Objects.put_all`."""
        self._waiting.append((name, data))
        self._bytes += len(data)
        if self._bytes >= SHIPMENT_BYTES_MAX:
            await self._send()

    async def close(self, name: str, data: bytes) -> None:
        """With the last one, which is written once all others are durable. Raises as `Objects.put_all`."""
        self._waiting.append((name, data))
        await self._send()

    async def _send(self) -> None:
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        await self._objects.put_all(waiting)


async def put_unless_there(objects: Objects, name: str, data: bytes) -> None:
    """A move that is run again writes nothing that stands already."""
    if await get_or_none(objects, name) != data:
        await put_and_read_back(objects, name, data)


async def get_or_none(objects: Objects, name: str) -> bytes | None:
    try:
        return await objects.get(name)
    except ObjectMissing:
        return None
