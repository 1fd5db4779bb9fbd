"""Where a Redis is, how a connection to it is made, whether it will do, and what its errors mean.

The driver's own repetitions are off (its default sends a slow command eleven times), and so are its maintenance
notifications, with which a connection that the server has closed goes unnoticed over TCP. What is sent again is decided in
`redis_lane.py`, which knows that it may be.
"""

import re
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from attrs import evolve, field, frozen
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    InvalidResponse,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.maint_notifications import MaintNotificationsConfig

from ...actors.errors import StorageFull, StoreError, StoreUnavailable, UnusableMirror

SHAPES = "redis://HOST:6379/0, rediss://USER:PASSWORD@HOST:6379/0 or unix:///PATH/TO/SOCKET?db=0"
REDIS_MIN = (7, 0)
VALKEY_MIN = (8, 0)
_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_NO_RIGHT = ("ACL failure", "The user executing the script can't")  # in a script, of Valkey and of Redis 7.0
_DATABASE = re.compile(r"[0-9]{1,5}")


@frozen(kw_only=True)
class Address:
    """A server. `shown` is its URL without user and password."""

    shown: str
    host: str = ""
    port: int = 0
    path: str = ""
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Mapping[str, str] | None = None

    @property
    def is_local(self) -> bool:
        """It is on this machine, and goes when the machine goes."""
        return bool(self.path) or self.host in ("localhost", "::1") or self.host.startswith("127.")

    def of_node(self, host: str, port: int) -> "Address":
        """Another node of the same cluster; an empty host means this one's."""
        host = host or self.host
        shown = f"{'redis' if self.tls is None else 'rediss'}://{host}:{port}"
        return evolve(self, host=host, port=port, shown=shown)

    def connection(self, *, within_s: float) -> AbstractConnection:
        """A connection that is not connected yet. It has no deadlines but for connecting: whoever reads sets them."""
        common: dict[str, Any] = {
            "db": self.database,
            "username": self.username,
            "password": self.password,
            "socket_timeout": None,
            "socket_connect_timeout": within_s,
            "retry": Retry(NoBackoff(), 0),
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
            "protocol": 2,
            "driver_info": None,
        }
        if self.path:
            return UnixDomainSocketConnection(path=self.path, **common)
        common |= {"host": self.host, "port": self.port, "socket_keepalive": True}
        return Connection(**common) if self.tls is None else SSLConnection(**(common | dict(self.tls)))


def read_url(url: str) -> Address:
    """Looks at nothing but the text.

    Raises:
        UnusableMirror: it names no server. The message never repeats a password.
    """
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise UnusableMirror(f"mirror: its URL cannot be read ({error}); write {SHAPES}") from error
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise UnusableMirror(f"mirror = {place[:200]!r}: this is no URL of a Redis; write {SHAPES}")
    parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
    known = {"db", *(_TLS_FILES if parts.scheme == "rediss" else ())}
    if unknown := sorted(parameters.keys() - known):
        raise UnusableMirror(
            f"mirror = {place!r}: there is no parameter {unknown[0]!r}; it may have {', '.join(sorted(known))}"
        )
    if parts.scheme == "unix":
        if host or not parts.path.strip("/"):
            raise UnusableMirror(f"mirror = {place!r}: it names no socket; write unix:///PATH/TO/SOCKET")
        database = parameters.get("db", "0")
    else:
        if not host:
            raise UnusableMirror(f"mirror = {place!r}: it names no host; write {SHAPES}")
        database = parameters.get("db") or parts.path.strip("/") or "0"
    if not _DATABASE.fullmatch(database):
        raise UnusableMirror(
            f"mirror = {place!r}: {database!r} is no database; give its number, 0 in most places"
        )
    return Address(
        shown=place,
        host=host or "",
        port=port or 6379,
        path=unquote(parts.path) if parts.scheme == "unix" else "",
        database=int(database),
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        tls={name: parameters[name] for name in _TLS_FILES if name in parameters}
        if parts.scheme == "rediss"
        else None,
    )


@frozen(kw_only=True)
class ServerInfo:
    """What the server says of itself: `Redis 7.0.15`, `Valkey 9.1.2`."""

    name: str
    version: tuple[int, ...]
    clustered: bool
    replica: bool

    def __str__(self) -> str:
        return f"{self.name} {'.'.join(map(str, self.version))}"


def read_info(text: object, address: Address) -> ServerInfo:
    """From the answer to INFO. Raises UnusableMirror where no Redis would say this."""
    if not isinstance(text, bytes):
        raise not_a_redis(address, f"it answers INFO with {text!r:.60}")
    lines = (line.partition(":") for line in text.decode(errors="replace").splitlines())
    said = {name: value.strip() for name, _, value in lines}
    valkey = said.get("valkey_version")
    version = tuple(int(part) for part in re.findall(r"\d+", valkey or said.get("redis_version", ""))[:3])
    if not version:
        raise not_a_redis(address, "it answers INFO without a version")
    return ServerInfo(
        name="Valkey" if valkey else "Redis",
        version=version,
        clustered=said.get("redis_mode", said.get("server_mode")) == "cluster"
        or said.get("cluster_enabled") == "1",
        replica=said.get("role") in ("slave", "replica"),
    )


def check_info(info: ServerInfo, address: Address, *, writes: bool) -> None:
    """Raises UnusableMirror where the server is too old, or a replica and it is to take writes."""
    least = VALKEY_MIN if info.name == "Valkey" else REDIS_MIN
    if info.version[:2] < least:
        raise UnusableMirror(
            f"mirror {address.shown} is {info}, which is too old; use Redis 7.0 or later, or Valkey 8.0 or later"
        )
    if writes and info.replica and not info.clustered:
        raise _read_only(address)


def not_a_redis(address: Address, why: str) -> UnusableMirror:
    return UnusableMirror(
        f"what answers at {address.shown} is no Redis ({why}); is the port right, and is it rediss:// where the server wants "
        "TLS, and redis:// where it has none?"
    )


def _read_only(address: Address) -> UnusableMirror:
    return UnusableMirror(
        f"mirror {address.shown} is a replica, which takes no writes; name its primary in the setting mirror"
    )


def translate(error: Exception, address: Address) -> StoreError:
    """What the driver raised or the server answered, as an error of ours with its cause and a remedy."""
    said = str(error) or type(error).__name__
    at = f"mirror {address.shown}"
    for found in _of_credentials, _of_refusals, _of_connection:
        translated = found(error, said, at, address)
        if translated is not None:
            return translated
    return UnusableMirror(f"{at} refused a command ({said}); use Redis 7.0 or later, or Valkey 8.0 or later")


def _of_credentials(error: Exception, said: str, at: str, address: Address) -> StoreError | None:
    if (
        isinstance(error, (AuthenticationError, AuthorizationError))
        or "WRONGPASS" in said
        or "NOAUTH" in said
    ):
        return UnusableMirror(
            f"{at} does not take this user or password ({said}); write them into the URL, with %40 for an @: "
            "rediss://USER:PASSWORD@HOST"
        )
    if isinstance(error, NoPermissionError) or "NOPERM" in said or said.startswith(_NO_RIGHT):
        return UnusableMirror(
            f"{at} does not let this user do what is needed ({said}); grant the rights that docs/redis.md lists"
        )
    return None


def _of_refusals(error: Exception, said: str, at: str, address: Address) -> StoreError | None:
    if isinstance(error, OutOfMemoryError) or said.startswith("OOM"):
        return StorageFull(
            f"{at} has no memory left ({said}); raise its maxmemory, or give it less else to hold"
        )
    if isinstance(error, ReadOnlyError) or "READONLY" in said:
        return _read_only(address)
    if "MISCONF" in said:
        return StorageFull(f"{at} takes no writes, since it cannot save ({said}); free space on its disk")
    if isinstance(error, ResponseError) and "WRONGTYPE" in said:
        return UnusableMirror(f"{at} holds a key of another type where one of ours belongs ({said})")
    if isinstance(error, (AskError, TryAgainError, ClusterDownError, NoScriptError)) or said.startswith(
        ("CLUSTERDOWN", "MASTERDOWN", "NOREPLICAS", "BUSY", "LOADING")
    ):
        return StoreUnavailable(f"{at} cannot take it at the moment ({said}); it is sent again")
    return None


def _of_connection(error: Exception, said: str, at: str, address: Address) -> StoreError | None:
    if isinstance(error, BusyLoadingError):
        return StoreUnavailable(f"{at} is still loading its data ({said}); it is sent again")
    if isinstance(error, InvalidResponse) or "Protocol error" in said:
        return not_a_redis(address, said)
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in said:
        return UnusableMirror(
            f"{at} has no certificate that is trusted ({said}); add ?ssl_ca_certs=FILE with that of its authority to the URL"
        )
    if isinstance(cause, ssl.SSLError) or "SSL" in said:
        return not_a_redis(address, said)
    if isinstance(cause, (FileNotFoundError, PermissionError)) and address.tls is not None:
        return UnusableMirror(f"{at}: a file that its URL names cannot be read ({said}); correct the URL")
    if isinstance(error, TimeoutError) or "Timeout" in said:
        hint = "" if address.tls is None else ". Does it speak TLS there? Where not, write redis://"
        return StoreUnavailable(f"{at} did not answer in time; the outcome is unknown{hint}")
    if isinstance(error, (OSError, EOFError)) or (
        isinstance(error, RedisError) and not isinstance(error, ResponseError)
    ):
        return StoreUnavailable(
            f"{at} cannot be reached, or went away ({said}); is it running, and is the setting mirror right?"
        )
    return None
