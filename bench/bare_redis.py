"""A server for the mirror, and the least that a commit costs there: the same script with the same arguments, packed and sent
through a socket, without an adapter."""

import asyncio
import shutil
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from os import getpid
from typing import Any, Self

import hiredis
import redis
from attrs import frozen

from sojourn.actors.errors import StoreUnavailable
from sojourn.actors.ports import MirrorUpdate, Record
from sojourn.actors.session.documents import documents_named
from sojourn.actors.session.model import Progress, SessionState, SourceMark
from sojourn.runtime.stores.mirror_keys import session_key
from sojourn.runtime.stores.mirror_redis import TTL_S
from sojourn.runtime.stores.mirror_scripts import APPLY
from sojourn.runtime.stores.redis_lane import pack
from sojourn.runtime.stores.redis_server import read_url
from sojourn.runtime.valkey import PrivateValkey

from .harness import BrokenOff, Options
from .live import SOURCE, work_folder

# Nobody else's keys on a server that was named are touched.
NAMESPACE = f"sojourn-bench-{getpid()}"
SCAN_COUNT = 1_000
READ_BYTES = 65_536
BATCH = 256
# What a progress report of a source replaces.
TOUCHED = ("meta", "progress", f"sources/{SOURCE}")


@asynccontextmanager
async def server(options: Options) -> AsyncIterator[str]:
    """The URL of the server that was named, where our keys are removed afterwards, or of a private one, which ends."""
    if options.redis is not None:
        try:
            yield options.redis
        finally:
            _clear(options.redis)
        return
    with work_folder() as folder:
        valkey = await PrivateValkey.start(folder)
        try:
            yield valkey.url
        finally:
            await valkey.close()
            shutil.rmtree(valkey.folder, ignore_errors=True)


def _clear(url: str) -> None:
    try:
        with redis.Redis.from_url(url) as client:
            for key in client.scan_iter(f"{NAMESPACE}:*", count=SCAN_COUNT):
                client.unlink(key)
    except redis.RedisError as error:
        raise StoreUnavailable(
            f"{url} is away, and keys {NAMESPACE}:* may stand there for 7 days ({error})"
        ) from error


@frozen(kw_only=True)
class Spent:
    """What the server says of itself: the memory of its data now, and its CPU so far."""

    memory_bytes: int
    cpu_s: float


def spent(url: str) -> Spent:
    """Raises StoreUnavailable."""
    try:
        with redis.Redis.from_url(url) as client:
            info: dict[str, Any] = client.info()
    except redis.RedisError as error:
        raise StoreUnavailable(f"{url} does not answer ({error})") from error
    return Spent(
        memory_bytes=int(info["used_memory"]),
        cpu_s=float(info["used_cpu_user"]) + float(info["used_cpu_sys"]),
    )


def packed(updates: list[MirrorUpdate]) -> bytes:
    """The one call that a batch of updates is."""
    arguments: list[str | bytes | int] = []
    for update in updates:
        documents = _fields(update.documents)
        arguments += [b"i", update.epoch, update.first_seq, update.last_seq]
        arguments += [len(update.events), len(documents), 0, *update.events, *documents]
    keys = [session_key(NAMESPACE, update.session_id) for update in updates]
    return pack("EVALSHA", APPLY.sha, len(keys), *keys, TTL_S, *arguments)


def _fields(documents: Mapping[str, bytes | None]) -> list[str | bytes]:
    return [part for name, document in documents.items() if document is not None for part in (name, document)]


def must_be_ok(answer: bytes) -> None:
    """Raises BrokenOff."""
    if set(answer) != set(b"o"):
        raise BrokenOff(f"the script answered {answer!r:.100}; somebody else writes there")


class BareScript:
    """One connection, calls answered in order."""

    def __init__(self, url: str) -> None:
        self._address = read_url(url)
        self._waiting: deque[asyncio.Future[bytes]] = deque()
        self._state = SessionState(session_id="")

    async def __aenter__(self) -> Self:
        address = self._address
        if address.path:
            self._reader, self._writer = await asyncio.open_unix_connection(address.path)
        else:
            self._reader, self._writer = await asyncio.open_connection(address.host, address.port)
        self._reading = asyncio.create_task(self._read())
        assert await self.call(pack("SCRIPT", "LOAD", APPLY.body)) == APPLY.sha
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])
        self._writer.close()

    def call(self, command: bytes) -> "asyncio.Future[bytes]":
        """Send it; awaiting gives its answer. Raises StoreUnavailable where the server goes away first, or has gone."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if self._reading.done():
            _fail(answer, StoreUnavailable("the server has closed the connection"))
            return answer
        self._waiting.append(answer)
        self._writer.write(command)
        return answer

    async def mirror(self, records: Sequence[Record]) -> None:
        """Durable progress reports, each with the documents that it replaces, in calls of 256. Raises BrokenOff where the
        script does not take one."""
        updates = [
            MirrorUpdate(
                session_id=record.session_id,
                epoch=1,
                first_seq=record.first_seq,
                last_seq=record.last_seq,
                events=record.payload.splitlines(),
                documents=self._documents(record.first_seq),
            )
            for record in records
        ]
        calls = [self.call(packed(updates[start : start + BATCH])) for start in range(0, len(updates), BATCH)]
        for answer in await asyncio.gather(*calls):
            must_be_ok(answer)

    def _documents(self, seq: int) -> dict[str, bytes | None]:
        """By our codec, as the skeleton's events are, since by any design they are another at every commit."""
        state, now = self._state, datetime.now(UTC)
        state.updated_at = now
        state.progress = Progress(seq, None, now, 1_000_000)
        state.sources[SOURCE] = SourceMark(seq, seq)
        return documents_named(state, TOUCHED)

    async def _read(self) -> None:
        try:
            await self._take_answers()
        except OSError as error:  # a server that is killed with calls unread resets the connection
            gone = StoreUnavailable(f"the server cut the connection ({error})")
        else:
            gone = StoreUnavailable("the server closed the connection")
        for answer in self._waiting:
            _fail(answer, gone)

    async def _take_answers(self) -> None:
        parser = hiredis.Reader()
        while data := await self._reader.read(READ_BYTES):
            parser.feed(data)
            while (found := parser.gets()) is not False:
                answer = self._waiting.popleft()
                if isinstance(found, Exception):
                    _fail(answer, StoreUnavailable(f"the server answered {found}"))
                elif not answer.done():
                    answer.set_result(found)


def _fail(answer: "asyncio.Future[bytes]", error: StoreUnavailable) -> None:
    """It counts as told: the first call that fails ends the round, and nobody awaits those behind it."""
    if not answer.done():
        answer.set_exception(error)
        answer.exception()
