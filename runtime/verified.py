"""Writing objects that must be there: what was written is read back and compared."""

from ..actors.errors import ObjectMissing, StoreUnavailable
from ..actors.ports import Objects


async def put_and_read_back(objects: Objects, name: str, data: bytes) -> None:
    """Raises StoreUnavailable where the store gives something else back than it took."""
    await objects.put(name, data)
    if await objects.get(name) != data:
        raise StoreUnavailable(f"{name} does not read back as it was written; check the disk, or the archive")


async def put_unless_there(objects: Objects, name: str, data: bytes) -> None:
    """A move that is run again writes nothing that stands already."""
    if await get_or_none(objects, name) != data:
        await put_and_read_back(objects, name, data)


async def get_or_none(objects: Objects, name: str) -> bytes | None:
    try:
        return await objects.get(name)
    except ObjectMissing:
        return None
