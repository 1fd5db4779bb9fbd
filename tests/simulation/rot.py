"""Bytes that turn over at rest, and the person who has a copy and puts it back."""

import random
from typing import TYPE_CHECKING

from attrs import frozen

from sojourn.runtime.layout import manifest_name, snapshot_seq
from sojourn.runtime.segments import parse_name
from sojourn.runtime.stores.memory import MemoryObjects

if TYPE_CHECKING:
    from .oracle import Oracle

MENDED_S = (1.0, 300.0)


@frozen
class Rotten:
    """What an object held, and when somebody puts that back, on the virtual clock."""

    data: bytes
    mended_at: float


class RottingObjects(MemoryObjects):
    """Objects of which some do not hold any more what was written. Who writes or deletes one has done with what it was."""

    def __init__(self) -> None:
        super().__init__()
        self.rotten: dict[str, Rotten] = {}

    async def put(self, name: str, data: bytes, *, create_only: bool = False) -> None:
        await super().put(name, data, create_only=create_only)
        self.rotten.pop(name, None)

    async def delete(self, name: str) -> None:
        await super().delete(name)
        self.rotten.pop(name, None)

    def turn(self, name: str, rng: random.Random) -> None:
        """One of its bits turns over, for good."""
        data = bytearray(self._objects[name])
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        self._objects[name] = bytes(data)

    def turn_for_a_while(self, name: str, rng: random.Random, mended_at: float) -> None:
        """As `turn`, until somebody puts it back."""
        if name not in self.rotten:
            self.rotten[name] = Rotten(self._objects[name], mended_at)
            self.turn(name, rng)

    def mend(self, now: float) -> None:
        """Somebody puts back what was to be by now."""
        for name in [name for name, was in self.rotten.items() if was.mended_at <= now]:
            self._objects[name] = self.rotten.pop(name).data

    def as_written(self, name: str) -> bytes:
        """What it held before it rotted: there is a copy of that."""
        was = self.rotten.get(name)
        return was.data if was is not None else self._objects[name]


def costs_nothing(oracle: "Oracle", objects: RottingObjects) -> list[str]:
    """Snapshots of sessions that go on: the older one or the events are read instead, and nobody has to mend them."""
    return [name for name in sorted(objects._objects) if snapshot_seq(name) and oracle.goes_on(name)]


def has_ended(oracle: "Oracle", objects: RottingObjects) -> list[str]:
    """What sessions that have ended consist of: it is read from another copy, or said to be damaged."""
    return [name for name in sorted(objects._objects) if kind_of(name) and not oracle.goes_on(name)]


def session_of(name: str) -> str:
    """Whose object that is; empty for a name that is no session's."""
    return name.split("/")[2] if name.count("/") > 2 else ""


def kind_of(name: str) -> str:
    """Empty for facts, which cost no more than themselves: they are left out, and that is no error for anyone."""
    if name == manifest_name(name.split("/")[2]):
        return "manifest"
    if parse_name(name) is not None:
        return "segment"
    return "snapshot" if snapshot_seq(name) is not None else ""
