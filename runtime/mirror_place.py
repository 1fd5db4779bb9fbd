"""Where a runtime's mirror is: a server that the settings name, or a private Valkey of the data folder."""

import importlib
import socket
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import sniffio
import structlog
from anyio import CancelScope, to_thread

from ..actors.errors import StoreError, StoreUnavailable, UnusableMirror
from ..actors.ports import Mirror
from .settings import NO_MIRROR, Settings
from .valkey import PrivateValkey, is_installed, private_folder_there

log = structlog.get_logger("sojourn.mirror")

OPEN_PATIENCE_S = 3.0  # a start waits no longer for a server that does not answer
CLOSE_PATIENCE_S = 5.0
SINCE_S = 1_577_836_800  # 2020-01-01, in seconds since 1970


def owner_name(data_dir: Path) -> str:
    """How a data folder is named in a mirror."""
    return f"{socket.gethostname()}:{data_dir.resolve()}"


class MirrorPlace:
    """Connects to the mirror, and keeps the private server running where there is one.

    Attributes:
        private: the server is ours, and the data folder's alone.
        owner: how this data folder is named to others who use the same server.
    """

    def __init__(self, settings: Settings) -> None:
        self.private = settings.mirror is None
        self.owner = owner_name(settings.data_dir)
        self._settings = settings
        self._valkey: PrivateValkey | None = None
        self._started = anyio.Event()
        self._mirror: Mirror | None = None

    @classmethod
    def of(cls, settings: Settings) -> "MirrorPlace | None":
        """None where there is no mirror: the settings say so, or name none and there is no private one: its wheel is not
        installed, or this runs on trio.

        Raises:
            UnusableMirror: one is named, and this runs on trio.
        """
        if settings.mirror == NO_MIRROR:
            return None
        on_asyncio = sniffio.current_async_library() == "asyncio"
        if settings.mirror is None:
            if not on_asyncio or not is_installed():
                return None
        elif not on_asyncio:
            raise UnusableMirror(
                "the mirror in Redis needs asyncio, and this runs on trio; run the host on asyncio, or set mirror to none"
            )
        return cls(settings)

    async def connect(self) -> Mirror:
        """The mirror, opened once. Raises UnusableMirror, StoreUnavailable."""
        if self._mirror is None:
            url = self._settings.mirror
            if url is None:
                if self._valkey is None:
                    self._valkey = await PrivateValkey.start(self._settings.data_dir)
                    self._started.set()
                url = self._valkey.url
            # In a thread, and only now: importing the driver takes as long as opening the journal.
            adapter = await to_thread.run_sync(importlib.import_module, ".stores.mirror_redis", __package__)
            self._mirror = await adapter.RedisMirror.open(url, namespace=self._settings.mirror_namespace)
        return self._mirror

    async def epoch(self, known: int) -> int:
        """The highest epoch that has written there. Where that cannot be learnt now, which is said, one that is above it: the
        seconds since 2020, and there are fewer starts than seconds. The private server is not asked where its data folder knows
        an epoch: only that folder's runtimes write there.

        Args:
            known: the highest epoch of the data folder.

        Raises:
            UnusableMirror: a server that the settings name will not do.
        """
        if self.private and (known or not private_folder_there(self._settings.data_dir)):
            return 0
        try:
            with anyio.move_on_after(OPEN_PATIENCE_S):
                return await (await self.connect()).epoch()
            raise StoreUnavailable(f"it did not answer within {OPEN_PATIENCE_S:g} s")
        except StoreError as error:
            if not self.private and not isinstance(error, StoreUnavailable):
                raise
            log.warning(
                "mirror.not_there",
                error=str(error),
                remedy="sessions go on without it, and it is tried again; set mirror to none where none is wanted",
            )
            return max(0, int(time.time()) - SINCE_S)

    async def watch(self, started: Callable[[], None]) -> None:
        """A child of a supervisor: keeps the private server running."""
        started()
        await self._started.wait()
        assert self._valkey is not None
        await self._valkey.watch()

    async def close(self) -> None:
        """The connections, and then the private server, which saves what it holds."""
        with CancelScope(shield=True):
            if self._mirror is not None:
                with anyio.move_on_after(CLOSE_PATIENCE_S):
                    await self._mirror.close()
            if self._valkey is not None:
                await self._valkey.close()
