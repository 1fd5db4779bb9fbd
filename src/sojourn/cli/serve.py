"""`sojourn serve`: the owner of a data folder, listening on loopback and on the folder's socket."""

import contextlib
import importlib.util
import ipaddress
import socket
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import anyio
import structlog
from attrs import frozen
from cyclopts import Parameter
from cyclopts.validators import Number

from ..actors.errors import SojournError
from ..http.app import create_app
from ..http.server import Server, bind_tcp, bound_unix
from ..runtime.paths import api_socket_path, default_data_dir
from ..runtime.runtime import Runtime
from ..runtime.settings import Settings
from ..runtime.telemetry import configure_logging
from ..runtime.tuning import tune_process

log = structlog.stdlib.get_logger()

# What a server without a token may be called. A web page can have its own name resolve to loopback, and then speaks to us
# under that name.
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


def serve(
    *,
    data: Path | None = None,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 8765,
    tcp: bool = True,
    token: Annotated[str | None, Parameter(env_var="SOJOURN_TOKEN", show_env_var=True)] = None,
    exit_when_idle: Annotated[float | None, Parameter(validator=Number(gte=0))] = None,
) -> int:
    """Own a data folder and serve its sessions over HTTP, until Ctrl-C or SIGTERM.

    It listens on loopback and on `api.sock` in the data folder, which only you can open.

    Parameters
    ----------
    data
        The data folder; made when it is not there. Default: $SOJOURN_DATA, else the user's data folder.
    host
        Where to listen. Anything but loopback needs a token.
    port
        The TCP port; 0 takes any free one.
    tcp
        With --no-tcp it listens on the data folder's socket only.
    token
        Every request must carry it as a bearer token. Rather give it as SOJOURN_TOKEN: others on this machine can
        read a command line.
    exit_when_idle
        End after so many seconds in which nothing was asked and no session showed signs of life.

    Returns:
        The exit code: 0 after an ordered stop (Ctrl-C and SIGTERM too), 1 where it could not serve, 2 for a mistake
        on the command line.
    """
    if token is not None and not token.strip():
        return _fail("the token is empty; give one, or leave --token and SOJOURN_TOKEN out", 2)
    if tcp and token is None and not is_loopback(host):
        return _fail(
            f"{host} can be reached from other machines; give a token with --token or SOJOURN_TOKEN, "
            "or listen on 127.0.0.1",
            2,
        )
    configure_logging()
    options = _Options(
        settings=Settings(data_dir=data if data is not None else default_data_dir()),
        address=(host, port) if tcp else None,
        token=token,
        exit_when_idle_s=exit_when_idle,
    )
    try:
        use_uvloop = importlib.util.find_spec("uvloop") is not None
        anyio.run(_serve, options, backend_options={"use_uvloop": use_uvloop})
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
    with listener as tcp:
        async with Runtime.open(options.settings) as runtime:
            # Now the folder is ours, so a socket that lies there belongs to no living owner.
            socket_path = api_socket_path(data_dir)
            with bound_unix(socket_path) as unix:
                app = create_app(
                    runtime, token=options.token, hosts=_LOOPBACK if options.token is None else None
                )
                idle_s = options.exit_when_idle_s
                idle = (lambda: runtime.idle_for_s() >= idle_s) if idle_s is not None else None
                tune_process()
                log.info(
                    "serve.listening",
                    url=_url(tcp) if tcp is not None else None,
                    socket=str(socket_path),
                    data=str(data_dir.resolve()),
                    epoch=runtime.epoch,
                    version=version("sojourn"),
                )
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_deliver_leftovers, data_dir, socket_path, options.token)
                    await Server(app, idle=idle).serve(sockets=[unix] if tcp is None else [tcp, unix])
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


def _fail(message: str, code: int) -> int:
    print(f"sojourn: {message}", file=sys.stderr)
    return code
