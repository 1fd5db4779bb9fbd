"""Brings the outbox to the server: in order, again until it is acknowledged, and never dropping anything.

What makes sending again safe is each command's (source, n), which the server answers as a duplicate. A command that is
refused for good leaves its number unused, and a source's next number must be the next: its place is taken by a
line in the session's log that says what was refused, and the command itself is kept in a file.
"""

import contextlib
import math
import os
import random
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import anyio
import msgspec

from ..client import ServerNotStarted, ServerProblem, ServerUnreachable
from .spool import (
    BATCH_LINES_MAX,
    Outbox,
    living_command,
    locked_spill,
    recordings,
    spill_paths,
    spilled,
    spool_dir,
)

HEARTBEAT_INTERVAL_S = 15.0
# Five requests a second at most: a request costs a commit there and about 3 ms of CPU on both sides together.
LINGER_S = 0.2
BACKOFF_START_S = 0.1
BACKOFF_MAX_S = 5.0
# How long the end of a recording waits for a server that does not take anything: one that gives no answer, or is not
# there; one that is being started; one that answers that it is busy. The time counts from the first vain try.
SILENCE_S = 5.0
STARTING_S = 20.0
BUSY_S = 15.0

# Codes that say nothing about the command itself; a line of a batch may carry them as well.
_PASSING = frozenset({"mailbox_full", "store_unavailable", "not_open", "deadline_exceeded", "storage_full"})
# What a server says that will never take it: no such session, no right to it, a creation that is wrong.
_HOPELESS_STATUSES = frozenset({400, 401, 403, 404, 413, 421, 422})
# A batch that is refused whole with one of these holds a line that is wrong: it is found by halving.
_WRONG_STATUSES = frozenset({400, 413, 422})


class Server(Protocol):
    """What delivering needs of a `ServerClient`."""

    @property
    def address(self) -> str: ...

    async def create_session(self, body: Mapping[str, Any]) -> dict[str, Any]: ...

    async def send(self, session_id: str, body: bytes) -> list[dict[str, Any]]: ...

    async def command(self, session_id: str, command: Mapping[str, Any]) -> dict[str, Any]: ...

    async def heartbeat(self, session_id: str) -> None: ...


async def create(outbox: Outbox, client: Server) -> None:
    """Create the outbox's session, unless the server has it. Raises ServerUnreachable and ServerProblem."""
    if outbox.creation is None:
        return
    try:
        session_id = (await client.create_session(outbox.creation))["session_id"]
    except ServerProblem as problem:
        if problem.code != "already_exists":  # the server has forgotten only that it was this creation
            raise
    else:
        if session_id != outbox.session_id:
            detail = f"it calls the session {session_id}, where its commands are for {outbox.session_id}"
            raise ServerProblem("another_session", detail, 422)
    outbox.created()


async def seal(session_id: str, client: Server) -> None:
    """Say that nothing more comes, so that the server need not wait for it. Raises ServerUnreachable and ServerProblem.

    A session that has not ended is left as it is, and a server that does not know this command seals by itself.
    """
    command = {"type": "session.seal", "command_id": f"seal-{os.urandom(8).hex()}"}
    try:
        await client.command(session_id, command)
    except ServerProblem as problem:
        if problem.code not in ("illegal_in_status", "sealed", "unknown_type"):
            raise


class Sender:
    """Delivers lines to one session. Raises what passes (unreachable, busy); sets aside what is refused for good.

    Attributes:
        refused: how many commands were set aside.
        refused_path: where they are.
    """

    def __init__(self, client: Server, session_id: str, refused_path: Path) -> None:
        self.refused = 0
        self.refused_path = refused_path
        self._client = client
        self._session_id = session_id
        self._blocked: set[str] = set()

    async def send(self, lines: list[bytes]) -> None:
        """On return every line is durable or set aside.

        Raises:
            ServerUnreachable, ServerProblem: some lines may be delivered and others not; send them all again.
        """
        position = 0
        size = len(lines)
        while position < len(lines):
            batch = lines[position : position + size]
            if self._blocked and _source(batch[0]) in self._blocked:
                self._keep(
                    batch[0],
                    {"code": "out_of_order", "detail": "an earlier command of its source was refused"},
                )
                position += 1
                continue
            refused_at, error = await self._send_batch(batch)
            position += refused_at
            if error is None:
                size = min(2 * size, len(lines))
            elif error["code"] == "whole_batch" and len(batch) > 1:
                size = max(1, len(batch) // 2)
            else:
                await self._set_aside(lines[position], error)
                position += 1
                # What followed in that batch was out of order, so a run of refusals goes in small steps.
                size = 1

    async def _send_batch(self, batch: list[bytes]) -> tuple[int, dict[str, Any] | None]:
        """How many lines from the first are taken, and the error of the next, or None."""
        try:
            outcomes = await self._client.send(self._session_id, b"".join(batch))
        except ServerProblem as problem:
            if problem.status not in _WRONG_STATUSES or problem.code in _PASSING:
                raise
            code = "whole_batch" if len(batch) > 1 else problem.code
            return 0, {"code": code, "detail": problem.detail}
        for index, outcome in enumerate(outcomes):
            if not outcome["ok"]:
                error: dict[str, Any] = outcome["error"]
                if error["code"] in _PASSING:
                    raise ServerProblem(error["code"], error["detail"], 503)
                return index, error
        return len(batch), None

    async def _set_aside(self, line: bytes, error: dict[str, Any]) -> None:
        self._keep(line, error)
        command = _decoded(line)
        if command is None or "source" not in command:
            return
        substitute = {
            "type": "log.append",
            "stream": "sojourn",
            "level": "warning",
            "text": f"refused {command.get('type')}: {error['code']}: {error['detail']}",
            "source": command["source"],
            "n": command.get("n"),
        }
        _, again = await self._send_batch([msgspec.json.encode(substitute) + b"\n"])
        if again is not None:
            self._blocked.add(command["source"])

    def _keep(self, line: bytes, error: dict[str, Any]) -> None:
        self.refused += 1
        kept = {"error": error, "session_id": self._session_id, "command": line.decode("utf-8", "replace")}
        # Where the disk is full, the line in the session's log still says what was refused.
        with contextlib.suppress(OSError), self.refused_path.open("ab") as file:
            file.write(msgspec.json.encode(kept) + b"\n")


class Delivery:
    """Keeps one outbox delivered while its recorder lives, with a heartbeat where there is nothing to deliver."""

    def __init__(
        self,
        outbox: Outbox,
        client: Server,
        sender: Sender,
        reconnect: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """`reconnect` is called when nothing answers; it may start a server, and may raise ServerUnreachable."""
        self.trouble: ServerProblem | ServerUnreachable | None = None
        # The server has taken something, or said that it is there.
        self.connected = anyio.Event()
        self._outbox = outbox
        self._client = client
        self._sender = sender
        self._reconnect = reconnect
        self._reconnecting = False
        self._vain_since: float | None = None
        self._news = anyio.Event()
        self._news_of_delivery = anyio.Event()
        self._draining = anyio.Event()

    def notify(self) -> None:
        """Something was added to the outbox."""
        self._news.set()

    @property
    def silent_s(self) -> float:
        """How long the server has left what we want of it unanswered, or was not there; 0 while it answers."""
        return anyio.current_time() - self._vain_since if self._vain_since is not None else 0.0

    async def run(self) -> None:
        """Deliver until cancelled."""
        failures = 0
        while True:
            try:
                await self._step()
            except (ServerProblem, ServerUnreachable) as trouble:
                self.trouble = trouble
                self._news_of_delivery.set()
                await self._back_off(trouble, failures)
                failures += 1
            else:
                self.trouble = self._vain_since = None
                self.connected.set()
                failures = 0

    async def drain(self, deadline_s: float) -> bool:
        """Wait until everything is delivered, at most so long, and not where the server takes nothing; whether it is."""
        self._draining.set()
        self._news.set()
        with anyio.move_on_after(deadline_s):
            while not self._outbox.is_drained and self.is_worth_waiting:
                self._news_of_delivery = anyio.Event()
                with anyio.move_on_after(self._patience_s()):
                    await self._news_of_delivery.wait()
        return self._outbox.is_drained

    @property
    def is_worth_waiting(self) -> bool:
        """Whether the server may take what is left soon."""
        return self._patience_s() > 0

    def _patience_s(self) -> float:
        """How much longer it is worth waiting for the server's next sign."""
        if self._is_hopeless():
            return 0.0
        if self._vain_since is None:
            return math.inf
        if self._reconnecting:
            most_s = STARTING_S
        else:
            most_s = BUSY_S if isinstance(self.trouble, ServerProblem) else SILENCE_S
        return most_s - self.silent_s

    async def _step(self) -> None:
        if self._outbox.is_drained:
            self._news_of_delivery.set()
            self._news = anyio.Event()
            with anyio.move_on_after(HEARTBEAT_INTERVAL_S) as waited:
                await self._news.wait()
            if waited.cancelled_caught:
                self._try()
                await self._client.heartbeat(self._outbox.session_id)
                return
        self._try()
        await create(self._outbox, self._client)
        batch = self._outbox.read()
        await self._sender.send(batch.lines)
        self._outbox.acknowledge(batch)
        self._vain_since = None
        if len(batch.lines) < BATCH_LINES_MAX:
            with anyio.move_on_after(LINGER_S):
                await self._draining.wait()

    def _try(self) -> None:
        if self._vain_since is None:
            self._vain_since = anyio.current_time()

    def _is_hopeless(self) -> bool:
        """Whether the server says that it will never take this, or we could not start one."""
        if isinstance(self.trouble, ServerProblem):
            return self.trouble.status in _HOPELESS_STATUSES
        return isinstance(self.trouble, ServerNotStarted)

    async def _back_off(self, trouble: ServerProblem | ServerUnreachable, failures: int) -> None:
        if isinstance(trouble, ServerUnreachable) and self._reconnect is not None:
            self._reconnecting = True
            try:
                await self._reconnect()
            except ServerUnreachable as worse:
                self.trouble = worse
                self._news_of_delivery.set()
            else:
                if failures == 0:  # the server is there, and only the connection was old
                    return
            finally:
                self._reconnecting = False
        delay_s = min(BACKOFF_MAX_S, BACKOFF_START_S * 2**failures) * random.uniform(0.5, 1.0)
        if isinstance(trouble, ServerProblem) and trouble.retry_after_s is not None:
            delay_s = max(delay_s, min(trouble.retry_after_s, 60.0))
        await anyio.sleep(delay_s)


async def deliver_leftovers(data_dir: Path, client: Server, session_id: str | None = None) -> int:
    """Deliver what dead recorders left in the folder's spool, and remove what is delivered.

    Live recorders, and spill files that a pytest still writes to, are left alone, and so are recordings meant for
    another server. A session whose recorder died before its end is not ended: nobody knows how it would have.

    Args:
        session_id: only this session's, or None for all.

    Returns:
        How many commands were delivered or set aside as refused.

    Raises:
        ServerUnreachable, ServerProblem: the server is away or busy; what is left stays for the next time.
    """
    delivered = 0
    target = "" if client.address.startswith("unix:") else client.address
    for folder in recordings(data_dir) if session_id is None else recordings(data_dir, session_id):
        outbox = Outbox.adopt(folder)
        if outbox is None:
            continue
        if outbox.target != target:
            outbox.close()
            continue
        sender = Sender(
            client, outbox.session_id, spool_dir(data_dir) / f"refused-{outbox.session_id}.ndjson"
        )
        try:
            delivered += await _deliver_one(outbox, sender, client)
        except ServerProblem as problem:
            if problem.status not in (400, 404, 413, 422):
                raise
            # It can never be delivered, and is not ours to delete.
            folder.rename(folder.with_name(f"orphan-{folder.name}"))
        finally:
            outbox.close()
    return delivered


async def _deliver_one(outbox: Outbox, sender: Sender, client: Server) -> int:
    await create(outbox, client)
    while not outbox.is_drained:
        batch = outbox.read()
        await sender.send(batch.lines)
        outbox.acknowledge(batch)
    delivered = outbox.statistics().acknowledged
    if living_command(outbox.folder) is not None:
        return delivered  # its pytest may have something to spill yet
    # After the outbox: a source's lines in a spill file follow those that the recorder took from it.
    for path in spill_paths(outbox.folder):
        try:
            with locked_spill(path) as file:
                for lines in spilled(file):
                    await sender.send(lines)
                    delivered += len(lines)
                path.unlink()
        except BlockingIOError:
            return delivered
    outbox.remove()
    with contextlib.suppress(ServerProblem, ServerUnreachable):  # then the server does it in its time
        await seal(outbox.session_id, client)
    return delivered


def _decoded(line: bytes) -> dict[str, Any] | None:
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return value if isinstance(value, dict) else None


def _source(line: bytes) -> str | None:
    command = _decoded(line)
    return None if command is None else command.get("source")
