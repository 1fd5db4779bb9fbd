"""The mirror in a Redis or Valkey server, or a cluster of them.

A batch is one script call (on a cluster one to each shard it touches), so a commit costs the client a few arguments in one
command; as commands of their own they would cost four times that. docs/redis.md says what stands there, for readers.
"""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Self, TypeVar

import structlog

from ...actors.errors import NotOpen, StoreUnavailable
from ...actors.ports import MirrorAnswer, MirrorClaim, MirrorHead, MirrorUpdate
from .mirror_keys import (
    EPOCH,
    EVENTS,
    NAMESPACE,
    SEQ,
    SHARDS,
    check_document_name,
    check_namespace,
    owner_key,
    session_key,
    shard_of,
)
from .mirror_scripts import (
    ANSWERS,
    APPLY,
    CLAIM,
    REMOVE,
    SCRIPTS,
    STAGE,
    STAGE_LOST,
    STAGE_TTL_S,
    TRIM,
    Script,
)
from .redis_lane import DEADLINE_S, Servers, pack, unusable_on_trio
from .redis_server import Address, ServerInfo, read_url

T = TypeVar("T")

log = structlog.get_logger("sojourn.mirror")

TTL_S = 7 * 86_400  # a net under sessions that nobody removes; longer than a session may be silent
TOMBSTONE_S = 3_600
CLAIM_S = 15
CALL_BYTES_MAX = 1024 * 1024  # the server does nothing else meanwhile: some 3 ms
STAGE_BYTES = 256 * 1024
READ_DEADLINE_S = 15.0  # a whole session of 96 MiB
_EVENTS_A_PAGE = 1_000
_HEADS_A_PAGE = 500
_STAGINGS_MAX = 3


class RedisMirror:
    """`Mirror` in Redis >= 7.0 or Valkey >= 8. Runs on asyncio.

    Batches are applied in the order of the calls, several may be under way, and one whose answer was lost is sent again, so
    a server that restarts, or an idle connection that was closed, costs a repetition and no error. A call is over within two
    deadlines for each of its commands, and then raises StoreUnavailable. A session that is sent whole and is larger than
    256 KiB goes in pieces beside what stands, which is then replaced at once; other sessions' updates overtake it.

    The server must not evict keys of ours; where it does, or has lost everything, the sessions concerned answer `gap`.
    """

    def __init__(
        self,
        servers: Servers,
        readers: Servers,
        *,
        namespace: str,
        ttl_s: int,
        tombstone_s: int,
        claim_s: int,
    ) -> None:
        self._servers = servers
        self._readers = readers
        self._namespace = namespace
        self._ttl_s = ttl_s
        self._tombstone_s = tombstone_s
        self._claim_s = claim_s
        self._carried: set[asyncio.Task[Any]] = set()
        self._foreign: set[str] = set()  # these were logged
        self._connections = 0  # that were made before the last claim
        self._closed = False

    @classmethod
    async def open(
        cls,
        url: str | Address,
        *,
        namespace: str = NAMESPACE,
        deadline_s: float = DEADLINE_S,
        ttl_s: int = TTL_S,
        tombstone_s: int = TOMBSTONE_S,
        claim_s: int = CLAIM_S,
    ) -> Self:
        """Connects, and looks whether the server will do.

        Args:
            url: `redis://`, `rediss://` or `unix://`; on a cluster, any of its nodes.
            namespace: the first part of every key, 1 to 64 of `[A-Za-z0-9_.-]`.
            deadline_s: how long one answer, or connecting, may take.
            ttl_s: after so many seconds without an update, give or take a day, a session's keys go.
            tombstone_s: so long it is said of a removed session where it went.
            claim_s: so long a claim lasts that is not renewed, on the server's clock.

        Raises:
            UnusableMirror: it will not do, now or later; the message has the cause and the remedy.
            StoreUnavailable: it cannot be reached, or does not answer.
        """
        if not in_asyncio():
            raise unusable_on_trio()
        address = read_url(url) if isinstance(url, str) else url
        check_namespace(namespace)
        servers = await Servers.open(address, deadline_s=deadline_s, scripts=SCRIPTS)
        try:
            # Reading a large session takes longer than a batch may wait behind it.
            readers = await Servers.open(address, deadline_s=max(deadline_s, READ_DEADLINE_S))
        except BaseException:
            await servers.close()
            raise
        return cls(
            servers,
            readers,
            namespace=namespace,
            ttl_s=ttl_s,
            tombstone_s=tombstone_s,
            claim_s=claim_s,
        )

    @property
    def server(self) -> ServerInfo:
        """What answered when this was opened."""
        assert self._servers.info is not None
        return self._servers.info

    @property
    def description(self) -> str:
        return f"{self.server} at {self._servers.address.shown}"

    @property
    def is_local(self) -> bool:
        """The server is on this machine: what is mirrored does not survive the machine's loss."""
        return self._servers.address.is_local

    async def apply(self, batch: Sequence[MirrorUpdate]) -> list[MirrorAnswer]:
        work = _Work(batch, self._namespace)
        await self._carry(self._apply(work))
        answers = work.answers
        if MirrorAnswer.FOREIGN in answers:
            for update, answer in zip(batch, answers, strict=True):
                self._tell_foreign(update.session_id, answer)
        return answers

    async def head(self, session_id: str) -> MirrorHead | None:
        return (await self._heads([session_id]))[0]

    async def heads(self) -> dict[str, MirrorHead]:
        found = dict[str, MirrorHead]()
        page: set[str] = set()
        async for session_ids in self._scan():
            page |= session_ids - found.keys()
            if len(page) >= _HEADS_A_PAGE:
                await self._add_heads(found, page)
                page = set()
        await self._add_heads(found, page)
        return found

    async def documents(self, session_id: str) -> dict[str, bytes]:
        key = session_key(self._namespace, session_id)
        fields = await self._carry(self._readers.call(shard_of(session_id), pack("HGETALL", key)))
        held = dict(zip(fields[::2], fields[1::2], strict=True))
        if EPOCH.encode() not in held:
            return {}
        return {name.decode(): document for name, document in held.items() if name[:1] != b"@"}

    async def events(self, session_id: str, after_seq: int = 0) -> list[tuple[int, bytes]]:
        key = session_key(self._namespace, session_id) + EVENTS
        found: list[tuple[int, bytes]] = []
        while True:
            command = pack("XRANGE", key, f"{after_seq + 1}-0", "+", "COUNT", _EVENTS_A_PAGE)
            entries = await self._carry(self._readers.call(shard_of(session_id), command))
            found += read_entries(entries)
            if len(entries) < _EVENTS_A_PAGE:
                return found
            after_seq = found[-1][0]

    async def trim(self, session_id: str, epoch: int, upto_seq: int) -> MirrorAnswer:
        return await self._run(TRIM, session_id, epoch, upto_seq + 1)

    async def remove(self, session_id: str, epoch: int, tier: str = "recent") -> MirrorAnswer:
        return await self._run(REMOVE, session_id, epoch, tier, self._tombstone_s)

    async def claim(self, owner: str, epoch: int) -> MirrorClaim:
        key = owner_key(self._namespace)
        packed = pack(b"EVALSHA", CLAIM.sha, 1, key, owner, epoch, self._claim_s, self._ttl_s)
        said: bytes = await self._carry(self._servers.call(0, packed))
        answer = ANSWERS[said[0]]
        # Before a new connection the server may have started anew, with an older dump or log and this claim in it.
        known, self._connections = self._connections, self._servers.connections
        if answer is MirrorAnswer.OK and known != self._connections:
            answer = MirrorAnswer.GAP
        return MirrorClaim(answer=answer, owner=said[1:].decode(errors="replace") or owner)

    async def epoch(self) -> int:
        key = owner_key(self._namespace)
        (epoch,) = await self._carry(self._readers.call(0, pack("HMGET", key, "epoch")))
        if epoch is not None:
            return int(epoch)
        return max((head.epoch for head in (await self.heads()).values()), default=0)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        while self._carried:
            await asyncio.wait(self._carried)
        await self._servers.close()
        await self._readers.close()

    # -- writing -------------------------------------------------------------------------------------------------------

    async def _carry(self, work: Coroutine[Any, Any, T]) -> T:
        """Carries it out, whatever becomes of the caller."""
        if self._closed:
            work.close()
            raise NotOpen
        task = asyncio.create_task(work)
        self._carried.add(task)
        task.add_done_callback(self._carried_out)
        try:
            return await asyncio.shield(task)
        finally:
            # What it raised holds this frame, and would hold itself by it, with all that was to be sent: garbage that only the
            # collector finds, and takes 40 ms for.
            del task

    def _carried_out(self, task: "asyncio.Task[Any]") -> None:
        self._carried.discard(task)
        if not task.cancelled():
            task.exception()  # or, where the caller has gone, it would be logged as never retrieved

    async def _apply(self, work: "_Work") -> None:
        batch = work.batch
        if self._servers.clustered:
            by_shard: dict[int, list[int]] = {}
            for number in work.at_once:
                by_shard.setdefault(shard_of(batch[number].session_id), []).append(number)
            await _all(self._send(work, some) for some in by_shard.values())
        else:
            await self._send(work, work.at_once)
        for number in work.staged:
            if _is_staged(batch[number]):
                work.answers[number] = await self._apply_staged(batch[number])
            else:
                await self._send(work, [number])

    async def _send(self, work: "_Work", numbers: list[int]) -> None:
        """In one call, or in several where it would be too large. On a cluster they are all of one shard."""
        if not numbers:
            return
        keys = [work.keys[number] for number in numbers]
        arguments: list[str | bytes | int] = []
        for number in numbers:
            arguments += work.arguments[number]
        packed = pack(b"EVALSHA", APPLY.sha, len(keys), *keys, self._ttl_s, *arguments)
        if len(packed) > CALL_BYTES_MAX and len(numbers) > 1:
            half = len(numbers) // 2
            await _all(self._send(work, some) for some in (numbers[:half], numbers[half:]))
            return
        letters = await self._servers.call(shard_of(work.batch[numbers[0]].session_id), packed)
        for number, letter in zip(numbers, letters, strict=True):
            work.answers[number] = ANSWERS[letter]

    async def _apply_staged(self, update: MirrorUpdate) -> MirrorAnswer:
        """Pieces beside what stands, under a name of their own, and then in its place. Sent again, the last step finds the
        pieces gone, as it does where the server has lost them: they are staged anew."""
        shard, key = shard_of(update.session_id), session_key(self._namespace, update.session_id)
        for _ in range(_STAGINGS_MAX):
            token = secrets.token_hex(8)
            for piece in _pieces(update):
                await self._servers.call(
                    shard, pack(b"EVALSHA", STAGE.sha, 1, key, token, STAGE_TTL_S, *piece)
                )
            kept = sum(document is not None for document in update.documents.values())
            last = (
                b"S" if update.force else b"s",
                update.epoch,
                update.first_seq,
                update.last_seq,
                0,
                0,
                3,
                token,
                kept,
                len(update.events),
            )
            letters = await self._servers.call(shard, pack(b"EVALSHA", APPLY.sha, 1, key, self._ttl_s, *last))
            if letters[0] != STAGE_LOST:
                return ANSWERS[letters[0]]
        raise StoreUnavailable(
            f"mirror {self._servers.address.shown} lost what was staged of {update.session_id}, {_STAGINGS_MAX} times over; "
            "does it evict keys? Its maxmemory-policy has to be noeviction"
        )

    async def _run(self, script: Script, session_id: str, *arguments: str | int) -> MirrorAnswer:
        key = session_key(self._namespace, session_id)
        packed = pack(b"EVALSHA", script.sha, 1, key, *arguments)
        letters = await self._carry(self._servers.call(shard_of(session_id), packed))
        answer = ANSWERS[letters[0]]
        self._tell_foreign(session_id, answer)
        return answer

    def _tell_foreign(self, session_id: str, answer: MirrorAnswer) -> None:
        if answer is MirrorAnswer.FOREIGN and session_id not in self._foreign:
            self._foreign.add(session_id)
            log.error(
                "mirror.foreign_key",
                session=session_id,
                key=session_key(self._namespace, session_id),
                remedy="this key, or the same with :events or :gone, is not of Sojourn and was left as it is; rename or delete "
                "it, or give Sojourn a database of its own",
            )

    # -- reading -------------------------------------------------------------------------------------------------------

    async def _heads(self, session_ids: Sequence[str]) -> list[MirrorHead | None]:
        return await self._carry(
            _all(
                self._head(shard_of(session_id), session_key(self._namespace, session_id))
                for session_id in session_ids
            )
        )

    async def _head(self, shard: int, key: str) -> MirrorHead | None:
        epoch, seq = await self._readers.call(shard, pack("HMGET", key, EPOCH, SEQ))
        return read_head(epoch, seq)

    async def _add_heads(self, found: dict[str, MirrorHead], page: set[str]) -> None:
        session_ids = sorted(page)
        for session_id, head in zip(session_ids, await self._heads(session_ids), strict=True):
            if head is not None:
                found[session_id] = head

    async def _scan(self) -> AsyncIterator[set[str]]:
        """The session ids of every hash here, some at a time; some of them twice."""
        pattern = re.compile(rf"{re.escape(self._namespace)}:\{{s\d\d\}}:([A-Za-z0-9_-]+)")
        match = f"{self._namespace}:{{s[0-9][0-9]}}:*"
        for shard in self._nodes():
            cursor: bytes | int = 0
            while True:
                command = pack("SCAN", cursor, "MATCH", match, "COUNT", 1_000, "TYPE", "hash")
                cursor, keys = await self._carry(self._readers.call(shard, command))
                named = (pattern.fullmatch(key.decode(errors="replace")) for key in keys)
                yield {name[1] for name in named if name is not None}
                if int(cursor) == 0:
                    break

    def _nodes(self) -> list[int]:
        """A shard of each node: asking it asks the node."""
        if not self._readers.clustered:
            return [0]
        return list({self._readers.home(shard).shown: shard for shard in range(SHARDS)}.values())


def in_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def read_head(epoch: bytes | None, seq: bytes | None) -> MirrorHead | None:
    """None where there is none, or somebody left something else in its place."""
    if epoch is None or seq is None or not (epoch.isdigit() and seq.isdigit()):
        return None
    return MirrorHead(epoch=int(epoch), seq=int(seq))


def read_entries(entries: list[Any]) -> list[tuple[int, bytes]]:
    """(seq, event) of a stream's entries."""
    return [(int(name.partition(b"-")[0]), fields[1]) for name, fields in entries]


async def _all(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All of them at once, begun in order; the first error once all have ended."""
    results: list[T] = []
    outcomes = await asyncio.gather(*work, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            try:
                raise outcome
            finally:
                del outcome, outcomes  # as in `_carry`
        results.append(outcome)
    return results


class _Work:
    """A batch, made ready: each update's key and arguments of `APPLY`, which go at once, and which later, that is a session
    that is staged and its updates from there on.

    Raises:
        ValueError: for what cannot be, before anything is sent.
    """

    __slots__ = ("answers", "arguments", "at_once", "batch", "keys", "staged")

    def __init__(self, batch: Sequence[MirrorUpdate], namespace: str) -> None:
        self.batch = batch
        self.answers: list[Any] = [None] * len(batch)
        self.keys = [session_key(namespace, update.session_id) for update in batch]
        self.arguments = [_arguments(update) for update in batch]
        self.at_once: list[int] = []
        self.staged: list[int] = []
        later = set[str]()
        for number, update in enumerate(batch):
            if _is_staged(update):
                later.add(update.session_id)
            (self.staged if later and update.session_id in later else self.at_once).append(number)


def _size(update: MirrorUpdate) -> int:
    return sum(map(len, update.events)) + sum(
        len(document) for document in update.documents.values() if document is not None
    )


def _is_staged(update: MirrorUpdate) -> bool:
    return update.whole and _size(update) > STAGE_BYTES


def _arguments(update: MirrorUpdate) -> list[str | bytes | int]:
    """An update as arguments of `APPLY`. Raises ValueError where a document's name cannot be."""
    events = update.events
    kind = (b"W" if update.force else b"w") if update.whole else b"i"
    found: list[str | bytes | int] = [
        kind,
        update.epoch,
        update.first_seq,
        update.last_seq,
        len(events),
        0,
        0,
        *events,
    ]
    gone: list[str] = []
    for name, document in update.documents.items():
        if name[:1] == "@":
            check_document_name(name)
        if document is None:
            gone.append(name)
        else:
            found += (name, document)
    found[5] = len(found) - 7 - len(events)
    if gone:
        found[6] = len(gone)
        found += gone
    return found


def _pieces(update: MirrorUpdate) -> Iterator[list[str | bytes | int]]:
    """A whole update as arguments of `STAGE` after its first two; each holds 256 KiB, or one larger document or event."""
    first = update.last_seq - len(update.events) + 1
    size, start = 0, 0
    for number, event in enumerate(update.events):
        size += len(event)
        if size >= STAGE_BYTES:
            yield [first + start, number + 1 - start, *update.events[start : number + 1]]
            size, start = 0, number + 1
    if start < len(update.events):
        yield [first + start, len(update.events) - start, *update.events[start:]]
    size, fields = 0, list[str | bytes | int]()
    for name, document in update.documents.items():
        if document is None:
            continue
        fields += (name, document)
        size += len(name) + len(document)
        if size >= STAGE_BYTES:
            yield [0, 0, *fields]
            size, fields = 0, []
    if fields:
        yield [0, 0, *fields]
