"""Commits mirrored through `RedisMirror.apply` (256 a batch, two batches under way, a 190-byte event and two documents of 200
bytes each), against the bare script call: the same script and arguments, packed beforehand, sent through a socket."""

import asyncio
import time

from sojourn.actors.ports import MirrorAnswer, MirrorUpdate
from sojourn.runtime.stores.mirror_redis import RedisMirror

from ..bare_redis import NAMESPACE, BareScript, must_be_ok, packed, server, spent
from ..harness import BrokenOff, Measured, Options, Stopwatch

UNIT = "commits"
OPERATIONS = 50_000
SESSIONS = 1_024
BATCH = 256
UNDER_WAY = 2
EVENT = b"e" * 190
DOCUMENTS = {"header": b"h" * 200, "progress": b"p" * 200}


def batches(options: Options) -> list[list[MirrorUpdate]]:
    """Round after round over all sessions, each the next event of its session."""
    sessions = options.sessions or SESSIONS
    total = options.operations or OPERATIONS
    updates = [
        MirrorUpdate(
            session_id=f"sess_{number % sessions:032x}",
            epoch=1,
            first_seq=number // sessions + 1,
            last_seq=number // sessions + 1,
            events=(EVENT,),
            documents=DOCUMENTS,
        )
        for number in range(total)
    ]
    # A session is in a batch once.
    size = min(BATCH, sessions)
    return [updates[start : start + size] for start in range(0, total, size)]


async def measure(options: Options) -> Measured:
    work = batches(options)
    latencies: list[float] = []
    async with server(options) as url:
        mirror = await RedisMirror.open(url, namespace=NAMESPACE)
        try:
            before = spent(url)
            under_way = asyncio.Semaphore(UNDER_WAY)

            async def apply(batch: list[MirrorUpdate]) -> None:
                began = time.perf_counter()
                answers = await mirror.apply(batch)
                latencies.append((time.perf_counter() - began) * 1e6)
                under_way.release()
                if set(answers) != {MirrorAnswer.OK}:
                    raise BrokenOff(
                        f"the mirror answered {set(answers)}; it lost data, or somebody else writes there"
                    )

            with Stopwatch() as watch:
                async with asyncio.TaskGroup() as tasks:
                    for batch in work:
                        await under_way.acquire()
                        tasks.create_task(apply(batch))
            server_s = spent(url).cpu_s - before.cpu_s
            more = await memory_of_sessions(url, mirror, before.memory_bytes, work)
        finally:
            await mirror.close()
    return Measured(
        operations=sum(map(len, work)),
        elapsed_s=watch.elapsed_s,
        cpu_s=watch.cpu_s,
        latencies_us=latencies,
        processes_cpu_s={"redis": server_s},
        more=more,
    )


async def memory_of_sessions(
    url: str, mirror: RedisMirror, empty: int, work: list[list[MirrorUpdate]]
) -> dict[str, float]:
    """Bytes a session, with the events since its snapshot and once they were dropped."""
    heads = {update.session_id: update.last_seq for batch in work for update in batch}
    active = spent(url).memory_bytes - empty
    await asyncio.gather(*[mirror.trim(session_id, 1, seq) for session_id, seq in heads.items()])
    passivated = spent(url).memory_bytes - empty
    return {
        "events_a_session": sum(map(len, work)) / len(heads),
        "active_bytes": active / len(heads),
        "passivated_bytes": passivated / len(heads),
    }


async def ceiling(options: Options) -> Measured:
    calls = [(len(batch), packed(batch)) for batch in batches(options)]
    async with server(options) as url, BareScript(url) as script:
        under_way: list[asyncio.Future[bytes]] = []
        with Stopwatch() as watch:
            for _, call in calls:
                under_way.append(script.call(call))
                if len(under_way) == UNDER_WAY:
                    must_be_ok(await under_way.pop(0))
            for last in under_way:
                must_be_ok(await last)
    return Measured(operations=sum(size for size, _ in calls), elapsed_s=watch.elapsed_s, cpu_s=watch.cpu_s)
