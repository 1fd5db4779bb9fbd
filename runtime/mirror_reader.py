"""Reads live sessions from the mirror, in any process that reaches the Redis, and writes nothing there.

    reader = await MirrorReader.open("redis://127.0.0.1:6379/0")
    session = await reader.read(session_id)
    async for news in reader.follow(session_id, after_seq=session.head.seq): ...

What it reads is docs/redis.md, so it can be done in other languages too.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Self

from attrs import frozen

from ..actors.errors import StoreUnavailable
from ..actors.ports import MirrorHead
from .stores.mirror_keys import (
    EPOCH,
    EVENTS,
    GONE,
    LIVE,
    NAMESPACE,
    SEQ,
    check_namespace,
    owner_key,
    session_key,
    shard_of,
)
from .stores.mirror_redis import READ_DEADLINE_S, in_asyncio, read_entries, read_head
from .stores.redis_lane import DEADLINE_S, Servers, pack, unusable_on_trio
from .stores.redis_live import Subscription, subscribed
from .stores.redis_server import read_url

_EVENTS_A_PAGE = 500
_LOOK_EVERY_S = 5.0  # a message may be lost with a connection that nobody saw break
_AGAIN_S = 0.05
_AGAIN_S_MAX = 5.0


@frozen(kw_only=True)
class LiveSession:
    """A session's documents as they stood together at one seq."""

    head: MirrorHead
    documents: dict[str, bytes]


@frozen(kw_only=True)
class MovedAway:
    """The session is live no more: it lies in `tier`, and `seq` was the last one the mirror had."""

    tier: str
    seq: int


@frozen(kw_only=True)
class LiveEvent:
    """`event` is the event's line, canonical JSON."""

    seq: int
    event: bytes


@frozen(kw_only=True)
class LiveGap:
    """These events are not in the mirror any more, which keeps those since the last snapshot. They are in the history."""

    first_seq: int
    last_seq: int


@frozen(kw_only=True)
class LiveRewound:
    """The session was recovered without its last events: those above `seq` did not happen, and come anew."""

    epoch: int
    seq: int


News = LiveEvent | LiveGap | LiveRewound | MovedAway


class MirrorReader:
    """Any number of reads and followers at once; each follower has a connection of its own. Runs on asyncio."""

    def __init__(self, servers: Servers, *, namespace: str, deadline_s: float) -> None:
        self._servers = servers
        self._namespace = namespace
        self._deadline_s = deadline_s

    @property
    def description(self) -> str:
        """Name and version of the server, and its address without a password."""
        return f"{self._servers.info} at {self._servers.address.shown}"

    @classmethod
    async def open(cls, url: str, *, namespace: str = NAMESPACE, deadline_s: float = DEADLINE_S) -> Self:
        """Args as of `RedisMirror.open`; a replica will do, too.

        Raises:
            UnusableMirror, StoreUnavailable: as of `RedisMirror.open`.
        """
        if not in_asyncio():
            raise unusable_on_trio()
        check_namespace(namespace)
        servers = await Servers.open(read_url(url), deadline_s=max(deadline_s, READ_DEADLINE_S), writes=False)
        return cls(servers, namespace=namespace, deadline_s=deadline_s)

    async def close(self) -> None:
        """Again: nothing happens. Followers end with NotOpen when they look next."""
        await self._servers.close()

    async def read(self, session_id: str) -> LiveSession | MovedAway | None:
        """The session as it stands; or where it went, for an hour; None where the mirror knows nothing of it.

        Raises:
            StoreUnavailable: no answer.
        """
        key, shard = session_key(self._namespace, session_id), shard_of(session_id)
        fields = await self._servers.call(shard, pack("HGETALL", key))
        held: dict[bytes, bytes] = dict(zip(fields[::2], fields[1::2], strict=True))
        head = read_head(held.get(EPOCH.encode()), held.get(SEQ.encode()))
        if head is None:
            return await self._moved_away(session_id)
        return LiveSession(
            head=head,
            documents={name.decode(): document for name, document in held.items() if name[:1] != b"@"},
        )

    async def held(self, session_id: str, after_seq: int = 0) -> AsyncGenerator[LiveEvent | LiveGap, None]:
        """The session's events above `after_seq` that are there now, in order; what is not held any more is a gap, and is
        said. Nothing for a session that is not there.

        Raises:
            StoreUnavailable: no answer.
        """
        while True:
            head, entries = await self._above(session_id, after_seq)
            for news in _news(head, entries, 0, after_seq):
                assert not isinstance(news, LiveRewound)  # that takes an epoch to compare with
                after_seq = news.last_seq if isinstance(news, LiveGap) else news.seq
                yield news
            if len(entries) < _EVENTS_A_PAGE:
                return

    async def has_owner(self) -> bool:
        """Whether a data folder claims the namespace now. Raises StoreUnavailable: no answer."""
        (until_s,) = await self._servers.call(0, pack("HMGET", owner_key(self._namespace), "until"))
        now_s, _ = await self._servers.call(0, pack("TIME"))
        return until_s is not None and int(until_s) > int(now_s)

    async def follow(
        self, session_id: str, after_seq: int = 0, *, epoch: int = 0
    ) -> AsyncGenerator[News, None]:
        """The session's events above `after_seq` as they come, each once and in order, until it has moved away, which is
        the last of the news. What the mirror does not hold any more is a gap, and is said.

        A server that goes away is waited for, and so is a session that is not there.

        Args:
            epoch: that under which `after_seq` was read, where it was read before; 0: any.

        Raises:
            UnusableMirror: the server will not do any more; waiting would not help.
            NotOpen: the reader was closed.
        """
        channel = session_key(self._namespace, session_id) + LIVE
        shard = shard_of(session_id)
        seq, again_s = after_seq, _AGAIN_S
        while True:
            try:
                await self._head(session_id)  # on a cluster this finds the node that holds it now
                async with subscribed(
                    self._servers.home(shard), channel, deadline_s=self._deadline_s
                ) as subscription:
                    while True:
                        head, entries = await self._above(session_id, seq)
                        for news in _news(head, entries, epoch, seq):
                            seq = news.last_seq if isinstance(news, LiveGap) else news.seq
                            yield news
                        again_s = _AGAIN_S
                        if head is not None:
                            epoch = head.epoch
                        elif (gone := await self._moved_away(session_id)) is not None:
                            if gone.seq > seq:
                                yield LiveGap(first_seq=seq + 1, last_seq=gone.seq)
                            yield gone
                            return
                        if len(entries) < _EVENTS_A_PAGE:
                            await _wait(subscription, epoch, seq)
            except StoreUnavailable:
                await asyncio.sleep(again_s)
                again_s = min(2 * again_s, _AGAIN_S_MAX)

    async def _above(self, session_id: str, seq: int) -> tuple[MirrorHead | None, list[tuple[int, bytes]]]:
        """The head, and then the events above seq that are there: those up to the head that are not, are gone."""
        stream = session_key(self._namespace, session_id) + EVENTS
        command = pack("XRANGE", stream, f"{seq + 1}-0", "+", "COUNT", _EVENTS_A_PAGE)
        head, entries = await asyncio.gather(
            self._head(session_id), self._servers.call(shard_of(session_id), command)
        )
        return head, read_entries(entries)

    async def _head(self, session_id: str) -> MirrorHead | None:
        key = session_key(self._namespace, session_id)
        epoch, seq = await self._servers.call(shard_of(session_id), pack("HMGET", key, EPOCH, SEQ))
        return read_head(epoch, seq)

    async def _moved_away(self, session_id: str) -> MovedAway | None:
        key = session_key(self._namespace, session_id) + GONE
        tier, seq = await self._servers.call(shard_of(session_id), pack("HMGET", key, "tier", "seq"))
        return None if tier is None or seq is None else MovedAway(tier=tier.decode(), seq=int(seq))


def _news(
    head: MirrorHead | None, entries: list[tuple[int, bytes]], epoch: int, seq: int
) -> "list[LiveEvent | LiveGap | LiveRewound]":
    """What is new above `seq`, where `head` was read before `entries`."""
    if head is None:
        return []
    if 0 < epoch < head.epoch and head.seq < seq:
        return [LiveRewound(epoch=head.epoch, seq=head.seq)]  # its events are looked at next
    found: list[LiveEvent | LiveGap | LiveRewound] = []
    upto = entries[0][0] - 1 if entries else head.seq
    if upto > seq:
        found.append(LiveGap(first_seq=seq + 1, last_seq=upto))
        seq = upto
    for at, event in entries:
        if at > seq + 1:  # somebody took entries out of the middle
            found.append(LiveGap(first_seq=seq + 1, last_seq=at - 1))
        found.append(LiveEvent(seq=at, event=event))
        seq = at
    return found


async def _wait(subscription: Subscription, epoch: int, seq: int) -> None:
    """Until there may be something above `seq`. Messages of what was read already are passed over."""
    known = b"%d" % epoch
    while (message := await subscription.next(_LOOK_EVERY_S)) is not None:
        its, _, told = message.partition(b" ")
        if its != known or not told.isdigit() or int(told) > seq:
            return
