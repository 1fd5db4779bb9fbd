"""Commits mirrored through `RedisMirror.apply` (256 a batch, two batches under way, a 190-byte event and two documents of 200
bytes each), against the bare script call: the same script and arguments, packed beforehand, sent through a socket."""

import asyncio
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import hiredis

from sojourn.actors.ports import MirrorAnswer, MirrorUpdate
from sojourn.runtime.stores.mirror_keys import NAMESPACE, session_key
from sojourn.runtime.stores.mirror_redis import TTL_S, RedisMirror
from sojourn.runtime.stores.mirror_scripts import APPLY
from sojourn.runtime.stores.redis_lane import pack
from sojourn.runtime.valkey import PrivateValkey

from ..harness import Measured, Options, Stopwatch

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
    return [updates[start : start + BATCH] for start in range(0, total, BATCH)]


async def measure(options: Options) -> Measured:
    work = batches(options)
    latencies: list[float] = []
    with TemporaryDirectory(prefix="sojourn-bench-") as folder:
        valkey = await PrivateValkey.start(Path(folder))
        mirror = await RedisMirror.open(valkey.url)
        try:
            empty = await memory_bytes(valkey)
            under_way = asyncio.Semaphore(UNDER_WAY)

            async def apply(batch: list[MirrorUpdate]) -> None:
                began = time.perf_counter()
                answers = await mirror.apply(batch)
                latencies.append((time.perf_counter() - began) * 1e6)
                under_way.release()
                assert set(answers) == {MirrorAnswer.OK}

            with Stopwatch() as watch:
                async with asyncio.TaskGroup() as tasks:
                    for batch in work:
                        await under_way.acquire()
                        tasks.create_task(apply(batch))
            more = await memory_of_sessions(valkey, mirror, empty, work)
        finally:
            await mirror.close()
            await valkey.close()
            shutil.rmtree(valkey.folder)
    return Measured(
        operations=sum(map(len, work)),
        elapsed_s=watch.elapsed_s,
        cpu_s=watch.cpu_s,
        latencies_us=latencies,
        more=more,
    )


async def memory_of_sessions(
    valkey: PrivateValkey, mirror: RedisMirror, empty: int, work: list[list[MirrorUpdate]]
) -> dict[str, float]:
    """Bytes a session, with the events since its snapshot and once they were dropped."""
    heads = {update.session_id: update.last_seq for batch in work for update in batch}
    active = await memory_bytes(valkey) - empty
    await asyncio.gather(*[mirror.trim(session_id, 1, seq) for session_id, seq in heads.items()])
    passivated = await memory_bytes(valkey) - empty
    return {
        "events_a_session": sum(map(len, work)) / len(heads),
        "active_bytes": active / len(heads),
        "passivated_bytes": passivated / len(heads),
    }


async def memory_bytes(valkey: PrivateValkey) -> int:
    reader, writer = await asyncio.open_unix_connection(valkey.folder / "valkey.sock")
    writer.write(pack("INFO", "memory"))
    info = await answer(reader, hiredis.Reader())
    writer.close()
    return int(info.split(b"used_memory:")[1].split()[0])


async def answer(reader: asyncio.StreamReader, parser: hiredis.Reader) -> bytes:
    while (found := parser.gets()) is False:
        parser.feed(await reader.read(65_536))
    assert isinstance(found, bytes), found
    return found


async def ceiling(options: Options) -> Measured:
    packed = []
    for batch in batches(options):
        arguments = [
            part
            for update in batch
            for part in (b"i", 1, update.first_seq, update.last_seq, 1, 4, 0, EVENT, *fields())
        ]
        keys = [session_key(NAMESPACE, update.session_id) for update in batch]
        packed.append((len(batch), pack("EVALSHA", APPLY.sha, len(keys), *keys, TTL_S, *arguments)))
    with TemporaryDirectory(prefix="sojourn-bench-") as folder:
        valkey = await PrivateValkey.start(Path(folder))
        reader, writer = await asyncio.open_unix_connection(valkey.folder / "valkey.sock")
        parser = hiredis.Reader()
        writer.write(pack("SCRIPT", "LOAD", APPLY.body))
        assert await answer(reader, parser) == APPLY.sha
        try:
            with Stopwatch() as watch:
                for number, (_, command) in enumerate(packed):
                    writer.write(command)
                    if number >= UNDER_WAY - 1:
                        assert set(await answer(reader, parser)) == set(b"o")
                for _ in range(min(len(packed), UNDER_WAY - 1)):
                    assert set(await answer(reader, parser)) == set(b"o")
        finally:
            writer.close()
            await valkey.close()
            shutil.rmtree(valkey.folder)
    return Measured(operations=sum(size for size, _ in packed), elapsed_s=watch.elapsed_s, cpu_s=watch.cpu_s)


def fields() -> list[str | bytes]:
    return [part for name, document in DOCUMENTS.items() for part in (name, document)]
