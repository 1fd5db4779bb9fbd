"""The server that a command which changes something talks to."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..client import ServerClient, find_or_start_server
from ..runtime.paths import api_socket_path
from ..runtime.settings_load import load_settings
from .look import Where


@asynccontextmanager
async def server_of(where: Where) -> AsyncIterator[ServerClient]:
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
