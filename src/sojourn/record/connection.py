"""The server that a recording talks to: named, found, or started; and started again when it is gone."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from ..client import (
    ServerClient,
    ServerProblem,
    ServerUnreachable,
    find_or_start_server,
    is_listening,
)
from ..launch import Launch
from ..runtime.paths import api_socket_path
from .options import RecordError, RecordOptions

CREATE_DEADLINE_S = 30.0
# A server that we did not start may be restarted by whoever did, before we start one.
FOREIGN_SERVER_GRACE_S = 10.0
# Busy, not open yet, too slow, full: worth waiting for.
_PASSING_STATUSES = (429, 503, 504, 507)


class Connection:
    """A server, and the session that was created there.

    Attributes:
        target: the server's address, or empty for the data folder's own.
    """

    def __init__(self, options: RecordOptions, client: ServerClient, started_by_us: bool) -> None:
        self.client = client
        self.target = client.address if options.server is not None else ""
        self.session_id = ""
        self._options = options
        self._started_by_us = started_by_us
        self._gone_since: float | None = None

    async def create_session(self) -> None:
        """Raises RecordError."""
        body = self._options.creation()
        deadline = time.monotonic() + CREATE_DEADLINE_S
        while True:
            try:
                self.session_id = (await self.client.create_session(body))["session_id"]
                return
            except ServerProblem as problem:
                if problem.status not in _PASSING_STATUSES or time.monotonic() > deadline:
                    remedy = f"; {problem.remedy}" if problem.remedy is not None else ""
                    raise RecordError(f"the session could not be created: {problem}{remedy}") from problem
                await anyio.sleep(min(problem.retry_after_s or 0.2, 5.0))
            except ServerUnreachable as error:
                raise RecordError(f"the session could not be created: {error}") from error

    async def reconnect(self) -> None:
        """Where the folder's server is gone, start one. Raises ServerUnreachable."""
        if self._options.server is not None or is_listening(api_socket_path(self._options.data_dir)):
            self._gone_since = None
            return
        now = time.monotonic()
        if self._gone_since is None:
            self._gone_since = now
        if not self._started_by_us and now - self._gone_since < FOREIGN_SERVER_GRACE_S:
            raise ServerUnreachable("the server has stopped", "start it again with `sojourn serve`")
        self._started_by_us = await find_or_start_server(self._options.data_dir)
        self._gone_since = None

    async def previous_session(self, plan: str) -> str | None:
        """The newest other session of the plan, or None; also where nothing answers."""
        try:
            records: list[dict[str, Any]] = await self.client.sessions(plan=plan, limit=2)
        except (ServerProblem, ServerUnreachable):
            return None
        others = (record["session_id"] for record in records if record["session_id"] != self.session_id)
        return next(others, None)


@asynccontextmanager
async def connect(options: RecordOptions, launched: Launch | None) -> AsyncIterator[Connection]:
    """A connection with a new session. Raises RecordError."""
    try:
        if options.server is not None:
            started, client = False, ServerClient(url=options.server, token=options.token)
        else:
            started = await find_or_start_server(options.data_dir, launched)
            client = ServerClient(socket_path=api_socket_path(options.data_dir), token=options.token)
    except ServerUnreachable as error:
        raise RecordError(str(error)) from error
    async with client:
        connection = Connection(options, client, started)
        await connection.create_session()
        yield connection
