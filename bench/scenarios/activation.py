"""Sessions brought back into memory from their snapshots, 64 read at once (5,000, of 20 events each), after a start of the
runtime. The ceiling reads and decodes the same snapshots from their files, one after the other, and makes no actor."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

from sojourn.actors.session.codec import decode_snapshot
from sojourn.runtime.runtime import Runtime

from ..harness import Measured, Options, Stopwatch, execute
from ..live import at_once, new_sessions, settings, told, work_folder

UNIT = "sessions"
WARM_UP = False
SESSIONS = 5_000
EVENTS = 18  # beside creation and start
CLIENTS = 64
NEVER_S = 86_400.0
FROM_BYTES = 1  # by default sessions as short as these are read from the journal alone


@contextmanager
def prepare(options: Options, loop: str) -> Iterator[Path]:
    """A data folder with a snapshot of every session."""
    with work_folder() as folder:

        async def fill(options: Options) -> None:
            often = settings(folder, snapshot_interval_s=0.1, snapshot_journal_bytes_min=FROM_BYTES)
            async with Runtime.open(often) as runtime:
                ids = await new_sessions(runtime, options.sessions or SESSIONS)

                async def tell_all(number: int) -> None:
                    for n in range(1, EVENTS + 1):
                        await runtime.ask(ids[number], told(n))

                await at_once(tell_all, len(ids))
                while len(snapshots(folder)) < len(ids):
                    await anyio.sleep(0.1)

        execute(fill, options, loop)
        yield folder


def snapshots(folder: Path) -> dict[str, Path]:
    """Session id to its newest snapshot."""
    return {path.parent.name: path for path in sorted(folder.glob("sessions/*/*/snapshot-*.json"))}


async def measure(options: Options) -> Measured:
    assert options.folder is not None
    quiet = settings(
        options.folder,
        snapshot_interval_s=NEVER_S,
        snapshot_journal_bytes_min=FROM_BYTES,
        passivate_after_s=NEVER_S,
    )
    async with Runtime.open(quiet) as runtime:
        ids = list(snapshots(options.folder))

        async def activate(number: int) -> None:
            await runtime.record(ids[number])

        with Stopwatch() as watch:
            await at_once(activate, len(ids), clients=options.clients or CLIENTS)
        in_memory = runtime.statistics().kernel.actors
    return Measured(
        operations=len(ids),
        elapsed_s=watch.elapsed_s,
        cpu_s=watch.cpu_s,
        more={"in_memory": in_memory},
    )


async def ceiling(options: Options) -> Measured:
    assert options.folder is not None
    paths = list(snapshots(options.folder).values())
    kept = []
    with Stopwatch() as watch:
        for path in paths:
            kept.append(decode_snapshot(path.read_bytes()))
    return Measured(operations=len(kept), elapsed_s=watch.elapsed_s, cpu_s=watch.cpu_s)
