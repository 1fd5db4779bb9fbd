"""What the command line says to a server: HTTP over the data folder's socket or over `--server URL` (docs/protocol.md).

`ServerClient` sends once and translates what can go wrong; retrying is its caller's decision. `find_or_start_server`
gives a data folder an owner when it has none.
"""

import subprocess
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import anyio
import httpx2
import msgspec
from attrs import frozen

from .actors.errors import SojournError
from .launch import Launch, ServerNotStarted, ServerUnreachable, is_listening, launch
from .runtime.paths import api_socket_path

__all__ = [
    "ServerClient",
    "ServerNotStarted",
    "ServerProblem",
    "ServerUnreachable",
    "StreamedEvent",
    "find_or_start_server",
    "is_listening",
]

API_PREFIX = "/api/v1"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
CONNECT_TIMEOUT_S = 5.0
# Above the server's own deadline of 30 s for a command, so that its answer comes before we give up on it.
ANSWER_TIMEOUT_S = 40.0
START_DEADLINE_S = 30.0


class ServerProblem(SojournError):
    """The server refused. Never raised for a line of a batch: those are judged one by one in the answer."""

    def __init__(self, code: str, detail: str, status: int, *, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.status = status
        self.retry_after_s = retry_after_s
        self.remedy = "give a token with --token or SOJOURN_TOKEN" if status == 401 else None


@frozen
class StreamedEvent:
    """One frame of a live stream: `id` is `EPOCH.SEQ`, `type` the event's type (or `snapshot`, `rewound`)."""

    id: str | None
    type: str
    data: Any


class ServerClient:
    """A connection to one server. Use it as an async context manager; it may be shared by tasks.

    Args:
        socket_path: the server's unix socket, or None.
        url: the server's address where there is no socket, for example `http://127.0.0.1:8765`.
        token: sent as a bearer token; None sends none.
    """

    def __init__(
        self, *, socket_path: Path | None = None, url: str | None = None, token: str | None = None
    ) -> None:
        if (socket_path is None) == (url is None):
            raise ValueError("give either a socket or a url")
        if url is not None and urlsplit(url).scheme not in ("http", "https"):
            raise ServerUnreachable(f"{url} is no server address", "give one such as http://127.0.0.1:8765")
        self.address = url.rstrip("/") if url is not None else f"unix:{socket_path}"
        headers = {"authorization": f"Bearer {token}"} if token else {}
        local = url is None or urlsplit(url).hostname in LOOPBACK
        self._http = httpx2.AsyncClient(
            base_url=(url.rstrip("/") if url is not None else "http://sojourn") + API_PREFIX,
            headers=headers,
            timeout=httpx2.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            transport=_transport(socket_path, url),
            # A proxy named in the environment cannot reach a server of this machine.
            trust_env=not local,
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, traceback)

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        json: Any = None,
        content: bytes | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> httpx2.Response:
        """One request, its answer read to the end.

        Raises:
            ServerProblem: the server answered with an error.
            ServerUnreachable: no connection, or no answer in time; the outcome is unknown.
        """
        headers = {"accept": accept}
        if json is not None:
            content = msgspec.json.encode(json)
        if content is not None:
            headers["content-type"] = content_type
        try:
            response = await self._http.request(method, path, params=params, content=content, headers=headers)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise self._unreachable(error) from error
        if response.status_code >= 400:
            raise _problem(response)
        return response

    async def is_ready(self) -> bool:
        """Whether something answers there and takes requests."""
        try:
            await self.request("GET", "/healthz")
        except ServerUnreachable:
            return False
        except ServerProblem as problem:
            return problem.status != 503
        return True

    async def create_session(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """`POST /sessions`: the record of the new session. Give a `command_id` in the body to make it repeatable."""
        return _object((await self.request("POST", "/sessions", json=body)).content)

    async def session(self, session_id: str) -> dict[str, Any]:
        """The session's public record. Raises ServerProblem (`no_such_session`)."""
        return _object((await self.request("GET", f"/sessions/{session_id}")).content)

    async def sessions(
        self, *, plan: str | None = None, status: str | None = None, limit: int = 50
    ) -> list[dict[str, Any]]:
        """At most `limit` records, newest first, over as many pages as that takes."""
        records: list[dict[str, Any]] = []
        params: dict[str, str | int] = {}
        if plan is not None:
            params["plan"] = plan
        if status is not None:
            params["status"] = status
        cursor: str | None = None
        while len(records) < limit:
            params["limit"] = min(limit - len(records), 1_000)
            if cursor is not None:
                params["cursor"] = cursor
            page = _object((await self.request("GET", "/sessions", params=params)).content)
            records += page["items"]
            cursor = page["next"]
            if cursor is None:
                break
        return records

    async def send(self, session_id: str, body: bytes, *, ack: str = "durable") -> list[dict[str, Any]]:
        """A batch of commands, a command a line: the outcomes, in order. One line's refusal is an outcome, no error.

        Args:
            body: NDJSON, at most 1,000 lines and 1 MiB.
        """
        response = await self.request(
            "POST",
            f"/sessions/{session_id}/commands",
            params={"ack": ack},
            content=body,
            content_type="application/x-ndjson",
            accept="application/x-ndjson",
        )
        return [_object(line) for line in response.content.splitlines() if line]

    async def command(
        self, session_id: str, command: Mapping[str, Any], *, ack: str = "durable"
    ) -> dict[str, Any]:
        """One command: its outcome. A refusal is a ServerProblem."""
        path = f"/sessions/{session_id}/commands"
        return _object((await self.request("POST", path, params={"ack": ack}, json=command)).content)

    async def accept_loss(self, session_id: str) -> dict[str, Any]:
        """The session goes on without the events it has lost: the outcome, with the seq of `history.lost`."""
        return _object((await self.request("POST", f"/sessions/{session_id}/accept-loss")).content)

    async def quarantined(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """What is set aside, of one session or of all."""
        path = "/quarantine" if session_id is None else f"/sessions/{session_id}/quarantine"
        items: list[dict[str, Any]] = _object((await self.request("GET", path)).content)["items"]
        return items

    async def quarantined_message(self, session_id: str, number: int) -> dict[str, Any]:
        """One message with its command and traceback."""
        return _object((await self.request("GET", f"/sessions/{session_id}/quarantine/{number}")).content)

    async def skip_quarantined(self, session_id: str, number: int) -> None:
        """The message is dropped for good."""
        await self.request("POST", f"/sessions/{session_id}/quarantine/{number}/skip")

    async def retry_quarantined(self, session_id: str, number: int) -> dict[str, Any]:
        """The message is sent again: its outcome."""
        path = f"/sessions/{session_id}/quarantine/{number}/retry"
        return _object((await self.request("POST", path)).content)

    async def edit_quarantined(
        self, session_id: str, number: int, fields: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The message is sent with these fields: its outcome."""
        path = f"/sessions/{session_id}/quarantine/{number}/edit"
        return _object((await self.request("POST", path, json=fields)).content)

    async def release_session(self, session_id: str) -> dict[str, Any]:
        """A session that crashed in a loop may start again; `released` says whether it was set aside."""
        return _object((await self.request("POST", f"/sessions/{session_id}/quarantine/release")).content)

    async def heartbeat(self, session_id: str) -> None:
        """A sign of life."""
        await self.request("POST", f"/sessions/{session_id}/heartbeat")

    async def events(
        self, session_id: str, *, after: int = 0, types: Sequence[str] = (), page: int = 1_000
    ) -> AsyncIterator[dict[str, Any]]:
        """The events above `after`, in order, up to the last there is now. `page` is how many one request brings."""
        while True:
            params: dict[str, str | int] = {"after": after, "limit": page}
            if types:
                params["types"] = ",".join(types)
            answer = _object(
                (await self.request("GET", f"/sessions/{session_id}/events", params=params)).content
            )
            for event in answer["items"]:
                yield event
            if answer["next"] is None:
                return
            after = answer["next"]

    async def stream(
        self,
        session_id: str,
        *,
        after: int | None = None,
        last_event_id: str | None = None,
        until_end: bool = False,
    ) -> AsyncIterator[StreamedEvent]:
        """The live stream, until the server closes it. Without `after` and `last_event_id` the first frame is the snapshot.

        Raises:
            ServerUnreachable: the connection broke; resume with the last `id` that came as `last_event_id`.
        """
        params: dict[str, str | int] = {}
        if after is not None:
            params["after"] = after
        if until_end:
            params["until"] = "end"
        request = self._http.build_request(
            "GET",
            f"/sessions/{session_id}/stream",
            params=params,
            headers={
                "accept": "text/event-stream",
                **({"last-event-id": last_event_id} if last_event_id is not None else {}),
            },
            # A comment comes at least every 15 s: two missed ones mean the connection is dead.
            timeout=httpx2.Timeout(CONNECT_TIMEOUT_S, read=35.0),
        )
        try:
            response = await self._http.send(request, stream=True)
            try:
                if response.status_code >= 400:
                    await response.aread()
                    raise _problem(response)
                async for event in _frames(_lines(response.aiter_text())):
                    yield event
            finally:
                await response.aclose()
        except (httpx2.HTTPError, OSError) as error:
            raise self._unreachable(error) from error

    async def export(self, session_id: str, kind: str) -> AsyncIterator[bytes]:
        """The session as a file (`json`, `ndjson` or `junit`), in chunks.

        Raises:
            ServerProblem: the server refused; nothing came.
            ServerUnreachable: no connection, or it broke off: what came is not all of it.
        """
        path = f"/sessions/{session_id}/export"
        request = self._http.build_request("GET", path, params={"format": kind}, headers={"accept": "*/*"})
        taken = 0
        try:
            response = await self._http.send(request, stream=True)
            try:
                if response.status_code >= 400:
                    await response.aread()
                    raise _problem(response)
                async for chunk in response.aiter_bytes():
                    taken += len(chunk)
                    yield chunk
            finally:
                await response.aclose()
        except (httpx2.HTTPError, OSError) as error:
            if not taken:
                raise self._unreachable(error) from error
            raise ServerUnreachable(
                f"the export broke off after {taken:,} bytes",
                "try it again; if it breaks off there again, the server's log says why",
            ) from error

    def _unreachable(self, error: Exception) -> ServerUnreachable:
        said = str(error) or type(error).__name__
        remedy = "start one with `sojourn serve`, or name another with --server URL"
        return ServerUnreachable(f"no server answers at {self.address} ({said})", remedy)


async def _lines(chunks: AsyncIterator[str]) -> AsyncIterator[str]:
    """The lines of a text, without their line feeds. JSON holds U+2028 and U+0085 bare, and these end no line here."""
    parts: list[str] = []
    async for chunk in chunks:
        *complete, rest = chunk.split("\n")
        for line in complete:
            parts.append(line)
            yield "".join(parts)
            parts.clear()
        parts.append(rest)


def _transport(socket_path: Path | None, url: str | None) -> httpx2.AsyncHTTPTransport | None:
    """None where httpx chooses. Where nothing is encrypted, no certificates are loaded either: they take 0.1 s."""
    if socket_path is not None:
        return httpx2.AsyncHTTPTransport(uds=str(socket_path), verify=False)
    local = urlsplit(url).hostname in LOOPBACK
    return httpx2.AsyncHTTPTransport(verify=False) if local and urlsplit(url).scheme == "http" else None


async def _frames(lines: AsyncIterator[str]) -> AsyncIterator[StreamedEvent]:
    """Server-sent events (WHATWG HTML, section 9.2), as far as our server uses them."""
    frame_id: str | None = None
    kind = "message"
    data: list[str] = []
    async for line in lines:
        if not line:
            if data:
                yield StreamedEvent(frame_id, kind, msgspec.json.decode("\n".join(data)))
            kind, data = "message", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            frame_id = value
        elif name == "event":
            kind = value
        elif name == "data":
            data.append(value)


def _object(content: bytes) -> dict[str, Any]:
    value = msgspec.json.decode(content)
    assert isinstance(value, dict)
    return value


def _problem(response: httpx2.Response) -> ServerProblem:
    """What the server said, or, where something else answered (a proxy), its status."""
    try:
        document = _object(response.content)
        code, detail = str(document["code"]), str(document["detail"])
    except (msgspec.DecodeError, AssertionError, KeyError):
        code, detail = f"http_{response.status_code}", f"the server answered {response.status_code}"
    try:
        retry_after_s = float(response.headers["retry-after"])
    except (KeyError, ValueError):
        retry_after_s = None
    return ServerProblem(code, detail, response.status_code, retry_after_s=retry_after_s)


async def find_or_start_server(
    data_dir: Path, launched: Launch | None = None, *, config: Path | None = None
) -> bool:
    """Wait until a server answers on the folder's socket, starting one that ends by itself when it is idle.

    Several may do so at once: one server gets the folder, and all find it.

    Args:
        launched: the server that the caller has started already, or None.
        config: the settings file of a server that is started here.

    Returns:
        True where we started it, False where it was there.

    Raises:
        ServerNotStarted: the server could not start (its own words are in the message), or took over 30 s.
    """
    data_dir = data_dir.resolve()
    socket_path = api_socket_path(data_dir)
    async with ServerClient(socket_path=socket_path) as client:
        if launched is None and is_listening(socket_path):
            await _wait_ready(client, data_dir / "serve.log")
            return False
        server = launched or launch(data_dir, config)
        try:
            await _wait_ready(client, server.log_path, server.process)
        except ServerNotStarted:
            server.process.terminate()
            # Another may have been quicker: then ours ended because the folder is in use.
            if not is_listening(socket_path):
                raise
            await _wait_ready(client, data_dir / "serve.log")
            return False
        finally:
            server.log_path.replace(data_dir / "serve.log")
        # It is meant to outlive us: with a return code, Popen does not warn that it still runs.
        server.process.returncode = 0
        return True


async def _wait_ready(
    client: ServerClient, log_path: Path, server: "subprocess.Popen[bytes] | None" = None
) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while not await client.is_ready():
        if server is not None and server.poll() is not None:
            # Of a traceback the last lines say what is wrong; the whole stays in the folder's serve.log.
            said = "\n".join(log_path.read_text("utf-8", "replace").strip().splitlines()[-3:])[-1000:]
            raise ServerNotStarted(
                f"the server ended with exit code {server.returncode}: {said or 'it said nothing'}",
                "name another folder with --data, or a running server with --server URL",
            )
        if time.monotonic() > deadline:
            raise ServerNotStarted(
                f"no answer at {client.address} within {START_DEADLINE_S:g} s",
                f"look into {log_path}, or name a running server with --server URL",
            )
        await anyio.sleep(0.02)
