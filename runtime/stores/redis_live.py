"""One channel of a Redis, listened to by a connection of its own, which has no deadline: silence is no failure."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from ...actors.errors import StoreUnavailable
from .redis_lane import pack
from .redis_server import Address, translate


class Subscription:
    """What `subscribed` gives."""

    def __init__(self, connection: AbstractConnection, address: Address) -> None:
        self._connection = connection
        self._address = address

    async def next(self, within_s: float) -> bytes | None:
        """The next message; None where none came. Raises StoreUnavailable where the subscription has ended."""
        try:
            message = await self._connection.read_response(timeout=within_s)
        except (RedisError, OSError) as error:
            raise translate(error, self._address) from error
        if message is None:
            return None
        if message[0] != b"smessage":  # a cluster moves the channel to another node
            raise StoreUnavailable(f"{self._address.shown} ended the subscription")
        text: bytes = message[2]
        return text


@asynccontextmanager
async def subscribed(address: Address, channel: str, *, deadline_s: float) -> AsyncIterator[Subscription]:
    """From the beginning of the block on, no message of the channel is missed but by a connection that breaks.

    Raises:
        StoreUnavailable, UnusableMirror: as for a call.
    """
    connection = address.connection(within_s=deadline_s)
    try:
        try:
            async with asyncio.timeout(deadline_s):
                await connection.connect()  # type: ignore[no-untyped-call]
                await connection.send_packed_command(pack("SSUBSCRIBE", channel), check_health=False)
                await connection.read_response()
        except (RedisError, OSError, TimeoutError) as error:
            raise translate(error, address) from error
        yield Subscription(connection, address)
    finally:
        with contextlib.suppress(RedisError, OSError):
            await connection.disconnect(nowait=True)
