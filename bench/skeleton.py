"""The least that a durable ask costs by any design: the envelope, the codec, the future and the group commit that ours has,
into the same journal, without kernel, session state or deduplication."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from attrs import field, frozen

from sojourn.actors.kernel.envelope import Envelope
from sojourn.actors.kernel.park import Gate, Parked, parking
from sojourn.actors.ports import Record
from sojourn.actors.session.commands import KIND_BY_COMMAND, Command
from sojourn.runtime.stores.journal_sqlite import SqliteJournal

from .harness import Measured, Stopwatch
from .live import record_of, work_folder

Then = Callable[[Sequence[Record]], Awaitable[Any]]
# So many batches the mirror writer has under way, too.
THEN_MAX = 2


@frozen
class Commits:
    """What is asked, on its way to a journal."""

    park: Callable[[], Parked] = field(factory=parking)
    gate: Gate = field(factory=Gate)
    queue: deque[tuple[str, int, Envelope]] = field(factory=deque)

    def ask(self, session_id: str, seq: int, command: Command) -> Parked:
        """Awaiting it gives the seq, once that is durable and what follows is done."""
        reply = self.park()
        self.queue.append((session_id, seq, Envelope(command, 256, reply, False, False)))
        self.gate.wake()
        return reply


@asynccontextmanager
async def committing(then: Then | None = None) -> AsyncIterator[Commits]:
    """Commits what is asked within this context; an error of the journal or of `then` leaves it.

    Args:
        then: what is waited for once a group is durable, before anyone of it is answered. Two groups may wait for it while
            the next is committed.
    """
    commits = Commits()
    gate, queue, under_way = commits.gate, commits.queue, asyncio.Semaphore(THEN_MAX)

    async def answer(group: list[tuple[str, int, Envelope]], records: Sequence[Record]) -> None:
        if then is not None:
            await then(records)
            under_way.release()
        for _, seq, envelope in group:
            assert envelope.reply is not None
            envelope.reply.set_result(seq)

    async def write(journal: SqliteJournal, tasks: asyncio.TaskGroup) -> None:
        while True:
            await gate.wait()
            while queue:
                group = list(queue)
                queue.clear()
                records = [_record(session_id, seq, envelope) for session_id, seq, envelope in group]
                await journal.append(records)
                if then is None:
                    await answer(group, records)
                else:
                    await under_way.acquire()
                    tasks.create_task(answer(group, records))

    with work_folder() as folder:
        journal = await SqliteJournal.open(folder / "journal.db")
        try:
            async with asyncio.TaskGroup() as tasks:
                writing = tasks.create_task(write(journal, tasks))
                yield commits
                writing.cancel()
        finally:
            await journal.close()


async def skeleton(work: Sequence[Iterable[Command]], then: Then | None = None) -> Measured:
    """One client each of `work`, a session of its own, its commands one after the other. `then`: see `committing`."""
    latencies: list[float] = []
    async with committing(then) as commits:
        park, gate, queue = commits.park, commits.gate, commits.queue

        async def client(session_id: str, commands: Iterable[Command]) -> None:
            for seq, command in enumerate(commands, 1):
                began = time.perf_counter()
                reply = park()  # `ask`, inlined
                queue.append((session_id, seq, Envelope(command, 256, reply, False, False)))
                gate.wake()
                await reply
                latencies.append((time.perf_counter() - began) * 1e6)

        with Stopwatch() as watch:
            await asyncio.gather(
                *[client(f"sess_{number:032x}", commands) for number, commands in enumerate(work)]
            )
    return Measured(
        operations=len(latencies), elapsed_s=watch.elapsed_s, cpu_s=watch.cpu_s, latencies_us=latencies
    )


def _record(session_id: str, seq: int, envelope: Envelope) -> Record:
    command: Command = envelope.message
    return record_of(session_id, seq, [command], KIND_BY_COMMAND[command.type].event)
