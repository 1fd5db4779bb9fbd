"""`sojourn accept-loss`: a person decides that a session goes on without the events it has lost."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..client import ServerClient, find_or_start_server
from ..runtime.paths import api_socket_path
from ..runtime.settings_load import load_settings
from .look import HERE, Flag, Where
from .screen import Screen, run
from .source import resolve


def accept_loss(session: str, /, *, yes: Flag = False, json: Flag = False, where: Where = HERE) -> int:
    """Let a session that is set aside go on without the events it has lost. Its history says so from then on.

    Asks first on a terminal. Where there is a copy of the data folder, put the damaged files back from it instead.

    Args:
        session: an ID: the session's id, its beginning or end, last, or last~N.
        yes: don't ask.
        json: one JSON document: session_id, first_seq, last_seq, seq (of the event that says so).
    """

    async def body(screen: Screen) -> int:
        async with where.open() as source:
            session_id = await resolve(source, session)
            damaged = (await source.record(session_id))["damaged"]
        if damaged is None:
            print(f"sojourn: {session_id} has lost nothing; nothing was done", file=sys.stderr)
            return 0
        lost = f"events {damaged['first_seq']} to {damaged['last_seq']} of {session_id}"
        if not yes:
            if not sys.stdin.isatty():
                print(f"sojourn: {lost} are lost; say --yes to go on without them", file=sys.stderr)
                return 2
            print(
                f"{lost} are lost. Go on without them for ever? [y/N] ", end="", file=sys.stderr, flush=True
            )
            if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                print("sojourn: nothing was done", file=sys.stderr)
                return 1
        async with _server(where) as client:
            outcome = await client.accept_loss(session_id)
        if json:
            screen.json({"session_id": session_id, **damaged, "seq": outcome["seq"]})
        else:
            print(
                f"sojourn: {session_id} goes on without them; event {outcome['seq']} says so", file=sys.stderr
            )
        return 0

    return run(body)


@asynccontextmanager
async def _server(where: Where) -> AsyncIterator[ServerClient]:
    """The one at --server, else the folder's own, started where there is none."""
    flags = {"data_dir": where.data, "server": where.server, "token": where.token}
    loaded = load_settings(config=where.config, flags=flags)
    settings = loaded.settings
    if settings.server is not None and (where.data is None or where.server is not None):
        async with ServerClient(url=settings.server, token=settings.token) as client:
            yield client
        return
    await find_or_start_server(settings.data_dir, config=loaded.file)
    async with ServerClient(socket_path=api_socket_path(settings.data_dir), token=settings.token) as client:
        yield client
