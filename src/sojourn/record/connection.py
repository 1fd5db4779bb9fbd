"""The server that a recording talks to: named, found, or started; and started again when it is gone."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ..client import (
    ServerClient,
    ServerNotStarted,
    ServerProblem,
    ServerUnreachable,
    find_or_start_server,
    is_listening,
)
from ..launch import Launch
from ..runtime.paths import api_socket_path
from .options import RecordOptions

# A server that we did not start may be restarted by whoever did, before we start one.
FOREIGN_SERVER_GRACE_S = 10.0
# A server that could not be started costs half a second of CPU each time, which the command would miss.
START_AGAIN_FIRST_S = 5.0
START_AGAIN_MAX_S = 60.0


class Connection:
    """The way to a server, which need not be there."""

    def __init__(self, options: RecordOptions, client: ServerClient, launched: Launch | None) -> None:
        self.client = client
        self._options = options
        self._launched = launched
        self._started_by_us = launched is not None
        self._gone_since: float | None = None
        self._failure: ServerUnreachable | None = None
        self._pause_s = START_AGAIN_FIRST_S
        self._start_again_at = 0.0

    async def reconnect(self) -> None:
        """Where the folder's server is gone, start one; where we have just started it, wait for it.

        Raises:
            ServerUnreachable: none is there, and it is too early for the next try, or that failed.
        """
        if self._options.server is not None:
            return
        launched, self._launched = self._launched, None
        if launched is None:
            if is_listening(api_socket_path(self._options.data_dir)):
                self._gone_since = None
                return
            self._check_whether_it_is_time()
        try:
            self._started_by_us = await find_or_start_server(
                self._options.data_dir, launched, config=self._options.config
            )
        except OSError as error:
            failure = ServerNotStarted(str(error), "make room, or name another folder with --data")
            raise self._failed(failure) from error
        except ServerNotStarted as error:
            raise self._failed(error) from None
        self._gone_since = self._failure = None
        self._pause_s = START_AGAIN_FIRST_S

    def _check_whether_it_is_time(self) -> None:
        now = time.monotonic()
        if self._failure is not None and now < self._start_again_at:
            raise self._failure
        if self._gone_since is None:
            self._gone_since = now
        if not self._started_by_us and now - self._gone_since < FOREIGN_SERVER_GRACE_S:
            raise ServerUnreachable("the server has stopped", "start it again with `sojourn serve`")

    def _failed(self, failure: ServerNotStarted) -> ServerNotStarted:
        self._failure = failure
        self._start_again_at = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, START_AGAIN_MAX_S)
        return failure

    async def previous_session(self, plan: str, session_id: str) -> str | None:
        """The newest other session of the plan, or None; also where nothing answers."""
        try:
            records: list[dict[str, Any]] = await self.client.sessions(plan=plan, limit=2)
        except (ServerProblem, ServerUnreachable):
            return None
        others = (record["session_id"] for record in records if record["session_id"] != session_id)
        return next(others, None)


@asynccontextmanager
async def connect(options: RecordOptions, launched: Launch | None = None) -> AsyncIterator[Connection]:
    """A connection, without asking whether a server is there."""
    if options.server is not None:
        client = ServerClient(url=options.server, token=options.token)
    else:
        client = ServerClient(socket_path=api_socket_path(options.data_dir), token=options.token)
    async with client:
        yield Connection(options, client, launched)
