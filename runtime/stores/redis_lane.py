"""Calls to a Redis in order, several under way at once; on a cluster, a lane to each node.

A caller never touches the driver: a cancelled call of redis-py drops its connection, and the next one pays a handshake. So
each lane has tasks of its own which own the connection, and callers wait for an answer that a task hands them.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Self

import hiredis
from attrs import define
from redis.asyncio.connection import AbstractConnection
from redis.crc import key_slot
from redis.exceptions import (
    BusyLoadingError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import (
    ConnectionError as LostConnection,
)

from ...actors.errors import NotOpen, StoreUnavailable, UnusableMirror
from .mirror_keys import SHARDS, tag
from .mirror_scripts import Script
from .redis_server import Address, ServerInfo, check_info, not_a_redis, read_info, translate

DEADLINE_S = 1.5
IN_FLIGHT_MAX = 4
TRIES_MAX = 3
PATIENCE = 2  # deadlines, after which nothing is tried again
_MOVES_MAX = 3

# An answer by which the connection, and not the call, is at fault: scripts are gone, or the primary is another one now.
_RECONNECT = (NoScriptError, ReadOnlyError)


def pack(*command: str | bytes | int) -> bytes:
    """A command on the wire. The driver's own packing is in Python and costs more than all else."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub knows tuples of one element only
    return packed


@define(eq=False)
class _Call:
    packed: bytes
    answer: "asyncio.Future[Any]"
    until: float  # on the event loop's clock
    tries: int = 0

    def fail(self, error: Exception) -> None:
        if not self.answer.done():  # its caller was cancelled
            self.answer.set_exception(error)

    def settle(self, answer: Any) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)


class Lane:
    """One connection, made when it is needed. Calls are sent in the order in which they came, and again in that order
    where the connection breaks before they are answered: everything that is sent here may be.

    A call is tried up to three times, but not again once two deadlines have passed since it was made. A cancelled caller
    goes at once, and its call is carried out all the same. Runs on asyncio.

    Args:
        deadline_s: how long one answer, or connecting, may take.
        scripts: they are loaded into the server at each connection.
    """

    def __init__(
        self, address: Address, *, deadline_s: float = DEADLINE_S, scripts: Sequence[Script] = ()
    ) -> None:
        self.address = address
        self._deadline_s = deadline_s
        self._scripts = scripts
        self._waiting: deque[_Call] = deque()
        self._flying: deque[_Call] = deque()
        self._stirred = asyncio.Event()  # there may be something to send
        self._sent = asyncio.Event()  # there may be something to receive
        self._connection: AbstractConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self.connections = 0  # so many were made

    async def call(self, packed: bytes) -> Any:
        """The answer. Raises the driver's errors as they are, and NotOpen."""
        if self._closed:
            raise NotOpen
        loop = asyncio.get_running_loop()
        call = _Call(packed, loop.create_future(), loop.time() + PATIENCE * self._deadline_s)
        self._waiting.append(call)
        self._stirred.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"lane to {self.address.shown}")
        return await call.answer

    async def close(self) -> None:
        """What was called has its answer, or has failed; the connection is closed. Again: nothing happens."""
        self._closed = True
        self._stirred.set()
        self._sent.set()
        if self._task is not None:
            await asyncio.shield(self._task)

    async def _run(self) -> None:
        try:
            await self._serve()
        finally:
            # The event loop is ending, or something unforeseen was raised: nobody waits for ever.
            self._task = None
            self._fail(self._flying, LostConnection("the lane has ended"))
            self._fail(self._waiting, LostConnection("the lane has ended"))

    async def _serve(self) -> None:
        while True:
            while not self._waiting and not self._closed:
                self._stirred.clear()
                await self._stirred.wait()
            if self._closed and not self._waiting:
                await self._drop()
                return
            try:
                connection = await self._connected()
            except (RedisError, OSError, TimeoutError) as error:
                await self._drop()
                for call in self._waiting:
                    call.tries += 1
                self._give_up(error)
                continue
            try:
                await self._exchange(connection)
            except (RedisError, OSError, TimeoutError) as error:
                await self._drop()
                self._waiting.extendleft(reversed(self._flying))
                self._flying.clear()
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Those calls fail that are not to be tried again."""
        now = asyncio.get_running_loop().time()
        kept = deque[_Call]()
        for call in self._waiting:
            if call.tries >= TRIES_MAX or (call.tries and now >= call.until):
                call.fail(error)
            else:
                kept.append(call)
        self._waiting = kept

    @staticmethod
    def _fail(calls: "deque[_Call]", error: Exception) -> None:
        while calls:
            calls.popleft().fail(error)

    async def _connected(self) -> AbstractConnection:
        if self._connection is None:
            self._connection = connection = self.address.connection(within_s=self._deadline_s)
            async with asyncio.timeout(self._deadline_s):
                await connection.connect()  # type: ignore[no-untyped-call]
                if self._scripts:
                    loads = b"".join(pack("SCRIPT", "LOAD", script.body) for script in self._scripts)
                    await connection.send_packed_command(loads, check_health=False)
                    for _ in self._scripts:
                        await connection.read_response()
            self.connections += 1
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(RedisError, OSError):  # it is gone, one way or the other
                await connection.disconnect(nowait=True)

    async def _exchange(self, connection: AbstractConnection) -> None:
        """Until the connection fails, or everything is answered after `close`."""
        tasks = [asyncio.create_task(self._send(connection)), asyncio.create_task(self._receive(connection))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in ended:
            if isinstance(outcome, Exception):
                raise outcome

    async def _send(self, connection: AbstractConnection) -> None:
        used = False
        while True:
            while self._waiting and len(self._flying) < IN_FLIGHT_MAX:
                # A server may close a connection that was idle; then nothing was sent yet, and it costs no try. Of a new
                # connection that would be tried for ever.
                if used and not self._flying and await connection.can_read():
                    raise LostConnection("the server has closed the connection")
                used = True
                call = self._waiting.popleft()
                call.tries += 1
                self._flying.append(call)
                self._sent.set()
                await connection.send_packed_command(call.packed, check_health=False)
            if self._closed and not self._waiting:
                return
            self._stirred.clear()
            await self._stirred.wait()

    async def _receive(self, connection: AbstractConnection) -> None:
        while True:
            while not self._flying:
                if self._closed and not self._waiting:
                    return
                self._sent.clear()
                await self._sent.wait()
            try:
                async with asyncio.timeout(self._deadline_s):
                    answer = await connection.read_response()
            except _RECONNECT:
                raise
            except ResponseError as refusal:
                self._flying.popleft().fail(refusal)
            else:
                self._flying.popleft().settle(answer)
            self._stirred.set()


class Servers:
    """One Redis, or a cluster: calls to a shard reach the node that holds it, in order."""

    def __init__(self, address: Address, *, deadline_s: float, scripts: Sequence[Script]) -> None:
        self.address = address
        self._make: Callable[[Address], Lane] = lambda node: Lane(
            node, deadline_s=deadline_s, scripts=scripts
        )
        self._first = self._make(address)
        self._lanes: dict[tuple[str, int], Lane] = {}  # of a cluster's nodes
        self._homes: list[tuple[str, int]] = []  # by shard; empty: not a cluster
        self.info: ServerInfo | None = None
        self._closed = False

    @classmethod
    async def open(
        cls,
        address: Address,
        *,
        deadline_s: float = DEADLINE_S,
        scripts: Sequence[Script] = (),
        writes: bool = True,
    ) -> Self:
        """Connects, and looks at what answers.

        Args:
            writes: a replica will not do.

        Raises:
            UnusableMirror: it will not do: no Redis, too old, a replica, a wrong password, a missing right.
            StoreUnavailable: it cannot be reached, or does not answer.
        """
        servers = cls(address, deadline_s=deadline_s, scripts=scripts)
        try:
            info = await _look(Lane(address, deadline_s=deadline_s))
            check_info(info, address, writes=writes)
            servers.info = info
            if info.clustered:
                await servers._map()
            if scripts:
                await servers.call(0, pack("TIME"))  # loads them: what is not granted is told now
        except BaseException:
            await servers.close()
            raise
        return servers

    @property
    def clustered(self) -> bool:
        return bool(self._homes)

    @property
    def connections(self) -> int:
        """How many connections were made; a server may have started anew, with less, before each."""
        return sum(lane.connections for lane in (self._first, *self._lanes.values()))

    def home(self, shard: int) -> Address:
        """The node that holds a shard, as far as is known."""
        return self.address.of_node(*self._homes[shard]) if self._homes else self.address

    async def call(self, shard: int, packed: bytes) -> Any:
        """The answer of the node that holds the shard. Raises the errors of ours."""
        for move in range(_MOVES_MAX):
            lane = self._lane(shard)
            try:
                return await lane.call(packed)
            except MovedError as error:
                if move + 1 == _MOVES_MAX:
                    raise translate(error, lane.address) from error
                # What the other nodes say may be older.
                self._homes[shard] = (error.host, error.port)
            except (RedisError, OSError, TimeoutError) as error:
                gone = not isinstance(error, ResponseError) and not isinstance(error, BusyLoadingError)
                if self._homes and gone and move == 0 and await self._moved(shard):
                    continue
                raise translate(error, lane.address) from error
        raise AssertionError("unreachable")

    async def close(self) -> None:
        self._closed = True
        for lane in (self._first, *self._lanes.values()):
            await lane.close()

    def _lane(self, shard: int) -> Lane:
        if not self._homes:
            return self._first
        home = self._homes[shard]
        lane = self._lanes.get(home)
        if lane is None:
            if self._closed:
                raise NotOpen
            lane = self._lanes[home] = self._make(self.address.of_node(*home))
        return lane

    async def _moved(self, shard: int) -> bool:
        """Whether the cluster says now that another node holds the shard."""
        before = self._homes[shard]
        try:
            await self._map()
        except StoreUnavailable:
            return False
        return self._homes[shard] != before

    async def _map(self) -> None:
        """Asks which node holds which shard: the node of the URL, or another that is known where that is gone."""
        slots, failed = None, None
        for lane in (self._first, *self._lanes.values()):
            try:
                slots = await lane.call(pack("CLUSTER", "SLOTS"))
                break
            except (RedisError, OSError, TimeoutError) as error:
                failed = translate(error, lane.address)
        if slots is None:
            assert failed is not None
            raise failed
        if not isinstance(slots, list):
            raise not_a_redis(self.address, f"it answers CLUSTER SLOTS with {slots!r:.60}")
        homes = []
        for shard in range(SHARDS):
            slot = key_slot(tag(shard).encode())
            node = next((entry[2] for entry in slots if entry[0] <= slot <= entry[1]), None)
            if node is None:
                raise StoreUnavailable(
                    f"mirror {self.address.shown}: no node of the cluster holds slot {slot}; `redis-cli --cluster check` "
                    "shows which are missing"
                )
            homes.append(((node[0] or b"").decode(), node[1]))
        self._homes = homes


async def _look(lane: Lane) -> ServerInfo:
    """What answers, before a script is loaded that an older server would not understand."""
    try:
        server = await lane.call(pack("INFO", "server"))
        role = await lane.call(pack("INFO", "replication"))
    except (RedisError, OSError, TimeoutError) as error:
        raise translate(error, lane.address) from error
    finally:
        await lane.close()
    whole = server + b"\r\n" + role if isinstance(server, bytes) and isinstance(role, bytes) else server
    return read_info(whole, lane.address)


def unusable_on_trio() -> UnusableMirror:
    return UnusableMirror(
        "the mirror in Redis needs asyncio, and this runs on trio; run the host on asyncio, or set mirror to none"
    )
