"""A server that kills itself at a named point of its stores, over the real ones.

`python -m tests.support.killing DATA PORT [POINT NTH [PLACE]]` serves DATA with settings under which everything happens often:
snapshots, compaction, seals and both moves within seconds. POINT is `STORE.METHOD[.KIND].before` or `.after`, such as
`objects.put.segment.before`, and the process is gone the NTH time it comes there; with it the power of the file system that
is mounted at PLACE.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import anyio
from attrs import evolve

from sojourn.http.app import create_app
from sojourn.http.server import Server, bind_tcp, bound_unix
from sojourn.runtime.opening import SystemClock, open_stores
from sojourn.runtime.paths import api_socket_path
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.stores.objects_folder import FolderObjects
from sojourn.runtime.telemetry import configure_logging

from .power import cut_power

METHODS = {
    "journal": ("append", "release", "forget"),
    "catalog": ("put", "switch"),
    "objects": (
        "put.snapshot",
        "put.segment",
        "put.manifest",
        "delete.snapshot",
        "delete.segment",
        "delete.manifest",
    ),
    "archive": ("put.snapshot", "put.segment", "put.manifest"),
}
POINTS = tuple(
    f"{store}.{method}.{moment}"
    for store, methods in METHODS.items()
    for method in methods
    for moment in ("before", "after")
)


class Fuse:
    """Kills this process the nth time `pass_` is told of the point."""

    def __init__(self, point: str | None, nth: int, place: Path | None = None) -> None:
        self._point = point
        self._left = nth
        self._place = place

    def pass_(self, point: str) -> None:
        if point == self._point:
            self._left -= 1
            if self._left <= 0:
                if self._place is not None:
                    cut_power(self._place)
                os.kill(os.getpid(), signal.SIGKILL)


class Fused:
    """A store with a fuse at its changing methods."""

    def __init__(self, inner: Any, store: str, fuse: Fuse) -> None:
        self._inner = inner
        self._store = store
        self._fuse = fuse
        if isinstance(inner, FolderObjects):
            self._fuse_writes(inner)

    def _fuse_writes(self, objects: Any) -> None:
        """Where one of several objects that travel together is written, before its name is synced."""
        write = objects._write

        def fused(path: Path, data: bytes, create_only: bool) -> None:
            point = f"{self._store}.put.{kind_of(path.name)}"
            self._fuse.pass_(f"{point}.before")
            write(path, data, create_only)
            self._fuse.pass_(f"{point}.after")

        objects._write = fused

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self._inner, name)
        hooked = {method.split(".")[0] for method in METHODS[self._store]}
        if name not in hooked or (name == "put" and isinstance(self._inner, FolderObjects)):
            return inner

        async def fused(*args: Any, **kwargs: Any) -> Any:
            point = f"{self._store}.{name}"
            if self._store in ("objects", "archive"):
                point += f".{kind_of(args[0])}"
            self._fuse.pass_(f"{point}.before")
            answer = await inner(*args, **kwargs)
            self._fuse.pass_(f"{point}.after")
            return answer

        return fused


def kind_of(name: str) -> str:
    """Which kind of object a name is of."""
    file = name.rsplit("/", 1)[-1]
    return {"snapshot": "snapshot", "events": "segment", "manifest": "manifest"}.get(
        file.split("-")[0].split(".")[0], "other"
    )


def eager(data_dir: Path) -> Settings:
    """Settings under which everything happens within seconds."""
    return Settings(
        mirror="none",
        data_dir=data_dir,
        journal_bytes_max=512 * 1024,
        snapshot_interval_s=0.3,
        snapshot_journal_bytes_min=1024,
        passivate_after_s=1.0,
        seal_after_s=0.3,
        recent_days=2.0 / 86_400,
    )


async def main(data_dir: Path, port: int, fuse: Fuse) -> None:
    configure_logging()
    settings = eager(data_dir)
    with bind_tcp("127.0.0.1", port) as tcp:
        async with open_stores(settings) as stores:
            names = ("journal", "catalog", "objects", "archive")
            fused = evolve(stores, **{name: Fused(getattr(stores, name), name, fuse) for name in names})  # type: ignore[arg-type]
            async with Runtime.over(settings, fused, SystemClock()) as runtime:
                with bound_unix(api_socket_path(data_dir)) as unix:
                    app = create_app(runtime)
                    print("ready", flush=True)
                    await Server(app).serve(sockets=[tcp, unix])


if __name__ == "__main__":
    folder, number, *rest = sys.argv[1:]
    point, nth, place = [*rest, None, None, None][:3]
    fuse = Fuse(point, int(nth or 0), Path(place) if place is not None else None)
    anyio.run(main, Path(folder), int(number), fuse)
