"""The least that a durable ask costs by any design: the envelope, the codec, the future and the group commit that ours has,
into the same journal, without kernel, session state or deduplication."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from sojourn.actors.kernel.envelope import Envelope
from sojourn.actors.kernel.park import Gate, parking
from sojourn.actors.ports import Record
from sojourn.actors.session.commands import KIND_BY_COMMAND, Command
from sojourn.runtime.stores.journal_sqlite import SqliteJournal

from .harness import Measured, Stopwatch
from .live import record_of, work_folder

Then = Callable[[Sequence[Record]], Awaitable[Any]]


async def skeleton(work: Sequence[Iterable[Command]], then: Then | None = None) -> Measured:
    """One client each of `work`, a session of its own, its commands one after the other.

    Args:
        then: what is waited for once a group is durable, before anyone is answered.
    """
    latencies: list[float] = []
    park, gate, queue = parking(), Gate(), deque[tuple[str, int, Envelope]]()
    with work_folder() as folder:
        journal = await SqliteJournal.open(folder / "journal.db")

        async def write() -> None:
            while True:
                await gate.wait()
                while queue:
                    group = list(queue)
                    queue.clear()
                    records = [_record(session_id, seq, envelope) for session_id, seq, envelope in group]
                    await journal.append(records)
                    if then is not None:
                        await then(records)
                    for _, seq, envelope in group:
                        assert envelope.reply is not None
                        envelope.reply.set_result(seq)

        async def client(session_id: str, commands: Iterable[Command]) -> None:
            for seq, command in enumerate(commands, 1):
                began = time.perf_counter()
                reply = park()
                queue.append((session_id, seq, Envelope(command, 256, reply, False, False)))
                gate.wake()
                await reply
                latencies.append((time.perf_counter() - began) * 1e6)

        writing = asyncio.create_task(write())
        clients = asyncio.gather(
            *[client(f"sess_{number:032x}", commands) for number, commands in enumerate(work)]
        )
        with Stopwatch() as watch:
            # A writer that fails answers nobody, so it is waited for too.
            both: list[asyncio.Future[Any]] = [writing, clients]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if writing.done():
            clients.cancel()
            writing.result()
        writing.cancel()
        await journal.close()
    return Measured(
        operations=len(latencies), elapsed_s=watch.elapsed_s, cpu_s=watch.cpu_s, latencies_us=latencies
    )


def _record(session_id: str, seq: int, envelope: Envelope) -> Record:
    command: Command = envelope.message
    return record_of(session_id, seq, [command], KIND_BY_COMMAND[command.type].event)
