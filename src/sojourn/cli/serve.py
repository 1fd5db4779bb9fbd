"""`sojourn serve`: the owner of a data folder, listening on loopback and on the folder's socket."""

import contextlib
import importlib.util
import ipaddress
import socket
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import anyio
import structlog
from attrs import evolve, frozen
from cyclopts import Parameter
from cyclopts.validators import Number

from ..actors.errors import InvalidSettings, SojournError
from ..actors.mirror_waiting import MirrorStatistics
from ..http.app import create_app
from ..http.server import Server, bind_tcp, bound_unix
from ..runtime.paths import api_socket_path
from ..runtime.runtime import Runtime
from ..runtime.settings import NO_MIRROR, Settings
from ..runtime.settings_load import load_settings, mask_url
from ..runtime.telemetry import bind_process, configure_logging
from ..runtime.tuning import begin_loading, tune_process

log = structlog.stdlib.get_logger()

# What a server without a token may be called. A web page can have its own name resolve to loopback, and then speaks to us
# under that name.
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


def serve(
    *,
    data: Path | None = None,
    host: str | None = None,
    port: Annotated[int | None, Parameter(validator=Number(gte=0, lte=65535))] = None,
    tcp: bool = True,
    token: str | None = None,
    mirror: str | None = None,
    exit_when_idle: Annotated[float | None, Parameter(validator=Number(gte=0))] = None,
    log_level: Literal["debug", "info", "warning", "error"] | None = None,
    config: Path | None = None,
    loop: Literal["auto", "asyncio", "uvloop"] = "auto",
) -> int:
    """Own a data folder and serve its sessions over HTTP, until Ctrl-C or SIGTERM.

    It listens on loopback and on `api.sock` in the data folder, which only you can open. What no flag says comes from the
    environment and the settings file; `sojourn settings` shows it.

    Parameters
    ----------
    data
        The data folder; made when it is not there. Default: $SOJOURN_DATA, else the user's data folder.
    host
        Where to listen. Anything but loopback needs a token. Default: 127.0.0.1.
    port
        The TCP port; 0 takes any free one. Default: 8765.
    tcp
        With --no-tcp it listens on the data folder's socket only.
    token
        Every request must carry it as a bearer token. Rather give it as SOJOURN_TOKEN: others on this machine can
        read a command line. With --no-tcp the settings file's token is not asked for.
    mirror
        The Redis that shows live sessions to other processes: redis://HOST:6379/0, rediss://, unix://; or none. Default: a
        private Valkey where `sojourn[embedded]` is installed.
    exit_when_idle
        End after so many seconds in which nothing was asked and no session showed signs of life.
    log_level
        The lowest level of log lines that is written. Default: info.
    config
        The settings file. Default: $SOJOURN_CONFIG, else sojourn.toml here, else the user's.
    loop
        The event loop: auto is uvloop where it is installed (`pip install 'sojourn[uvloop]'`).

    Returns:
        The exit code: 0 after an ordered stop (Ctrl-C and SIGTERM too), 1 where it could not serve, 2 for a mistake
        on the command line.
    """
    flags = {
        "data_dir": data,
        "host": host,
        "port": port,
        "token": token,
        "log_level": log_level,
        "mirror": mirror,
    }
    try:
        loaded = load_settings(config=config, flags=flags)
    except InvalidSettings as error:
        return _fail(str(error), 2)
    settings = loaded.settings
    if not tcp and loaded.source("token") not in ("--token", "SOJOURN_TOKEN"):
        # The file's token is for what others can reach. This socket is its user's alone, who may read it from any folder,
        # with another file or none.
        settings = evolve(settings, token=None)
    if settings.token is not None and not settings.token.strip():
        return _fail("the token is empty; give one, or leave --token and SOJOURN_TOKEN out", 2)
    if tcp and settings.token is None and not is_loopback(settings.host):
        return _fail(
            f"{settings.host} can be reached from other machines; give a token with --token or SOJOURN_TOKEN, "
            "or listen on 127.0.0.1",
            2,
        )
    uvloop_there = importlib.util.find_spec("uvloop") is not None
    if loop == "uvloop" and not uvloop_there:
        return _fail("uvloop is not installed; pip install 'sojourn[uvloop]', or leave --loop out", 2)
    configure_logging(level=settings.log_level)
    options = _Options(
        settings=settings,
        address=(settings.host, settings.port) if tcp else None,
        token=settings.token,
        exit_when_idle_s=exit_when_idle,
        uvloop=uvloop_there and loop != "asyncio",
    )
    try:
        anyio.run(_serve, options, backend_options={"use_uvloop": options.uvloop})
    except SojournError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return 130  # before it served: afterwards Ctrl-C is an ordered stop
    return 0


@frozen(kw_only=True)
class _Options:
    settings: Settings
    address: tuple[str, int] | None
    token: str | None
    exit_when_idle_s: float | None
    uvloop: bool


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. A name counts as not, but for `localhost`: it may resolve to anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _serve(options: _Options) -> None:
    data_dir = options.settings.data_dir
    # Before the data folder is touched: a port in use must leave no trace there.
    listener = bind_tcp(*options.address) if options.address is not None else contextlib.nullcontext()
    begin_loading()
    with listener as tcp:
        async with Runtime.open(options.settings) as runtime:
            bind_process(epoch=runtime.epoch)
            # Now the folder is ours, so a socket that lies there belongs to no living owner.
            socket_path = api_socket_path(data_dir)
            with bound_unix(socket_path) as unix:
                app = create_app(
                    runtime, token=options.token, hosts=_LOOPBACK if options.token is None else None
                )
                idle_s = options.exit_when_idle_s
                idle = (lambda: runtime.idle_for_s() >= idle_s) if idle_s is not None else None
                tune_process()

                def listening() -> None:
                    log.info(
                        "serve.listening",
                        url=_url(tcp) if tcp is not None else None,
                        socket=str(socket_path),
                        data=str(data_dir.resolve()),
                        mirror=_mirror(options.settings, runtime.mirror_statistics()),
                        loop="uvloop" if options.uvloop else "asyncio",
                        version=version("sojourn"),
                    )

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_deliver_leftovers, data_dir, socket_path, options.token)
                    await Server(app, idle=idle, listening=listening).serve(
                        sockets=[unix] if tcp is None else [tcp, unix]
                    )
                    tasks.cancel_scope.cancel()
    log.info("serve.stopped", data=str(data_dir.resolve()))


async def _deliver_leftovers(data_dir: Path, socket_path: Path, token: str | None) -> None:
    """What recorders left that were killed, as any reporter would deliver it: over our own socket, once it answers."""
    if not (data_dir / "spool").is_dir():
        return
    # Only now: the client costs a fifth of our start.
    from ..client import ServerClient
    from ..record.delivery import deliver_leftovers

    try:
        async with ServerClient(socket_path=socket_path, token=token) as client:
            while not await client.is_ready():
                await anyio.sleep(0.05)
            delivered = await deliver_leftovers(data_dir, client)
    except (SojournError, OSError) as error:
        log.warning("serve.leftovers_wait", error=str(error), remedy="they are delivered at the next start")
        return
    if delivered:
        log.info("serve.leftovers_delivered", commands=delivered)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _mirror(settings: Settings, found: MirrorStatistics | None) -> str:
    """Which mirror there is, for the first line of the log. One that is still being connected to says so later."""
    if found is None:
        return "none" if settings.mirror == NO_MIRROR else "none (sojourn[embedded] brings one)"
    if settings.mirror is None:
        return f"{found.server}, private" if found.server else f"private Valkey, {found.state}"
    return found.server or f"{mask_url(settings.mirror)}, {found.state}"


def _fail(message: str, code: int) -> int:
    print(f"sojourn: {message}", file=sys.stderr)
    return code
