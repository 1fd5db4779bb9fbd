"""Who may ask, and when: the token, a runtime that is not open, embedding, probes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Message, Receive, Scope, Send

from sojourn.http.app import create_app, standalone
from sojourn.http.guard import Guard
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from tests.support.facade import ON_ASYNCIO, client_of, facade, serving

pytestmark = ON_ASYNCIO

TOKEN = "t0ps3cret"


async def test_without_the_token_every_path_but_healthz_is_401(tmp_path: Path) -> None:
    wrong = ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x"]
    paths = [("GET", "/sessions"), ("POST", "/sessions"), ("GET", "/version"), ("GET", "/x")]
    async with facade(tmp_path, token=TOKEN) as client:
        for headers in [{}, *({"authorization": authorization} for authorization in wrong)]:
            for method, path in paths:
                response = await client.request(method, path, headers=headers)
                assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
                assert response.headers["www-authenticate"].startswith("Bearer")
                assert response.headers["x-request-id"]
            assert (await client.get("/healthz", headers=headers)).status_code == 200


async def test_over_tcp_a_server_with_names_answers_to_these_alone(tmp_path: Path) -> None:
    names = frozenset({"localhost", "127.0.0.1", "[::1]"})
    ours = ["localhost", "LOCALHOST:8765", "127.0.0.1:1", "[::1]:8765", "[::1]"]
    others = [
        "evil.example",
        "evil.example:8765",
        "localhost.evil.example",
        "127.0.0.1.evil.example:80",
        "localhost:80:80",
    ]
    async with (
        Runtime.open(Settings(data_dir=tmp_path, mirror="none")) as runtime,
        serving(create_app(runtime, hosts=names)) as port,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}/api/v1") as client,
    ):
        for host in (*ours, *others):
            response = await client.get("/sessions", headers={"host": host})
            assert response.status_code == (200 if host in ours else 421), host
            assert response.json().get("code") == (None if host in ours else "wrong_host")


async def test_with_the_token_everything_is_answered(tmp_path: Path) -> None:
    async with facade(tmp_path, token=TOKEN) as client:
        for scheme in ("Bearer", "bearer"):
            response = await client.get("/sessions", headers={"authorization": f"{scheme} {TOKEN}"})
            assert response.status_code == 200


async def test_before_the_runtime_is_open_and_after_it_closed_every_path_answers_503(tmp_path: Path) -> None:
    app = create_app()
    async with client_of(app) as client:

        async def refused(path: str) -> bool:
            response = await client.get(path)
            return (response.status_code, response.json()["code"]) == (503, "not_open")

        paths = ("/sessions", "/readyz", "/nothing")
        for path in paths:
            response = await client.get(path)
            assert (response.status_code, response.json()["code"]) == (503, "not_open")
            assert response.headers["retry-after"] == "1"
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/version")).json()["api"] == "v1"
        async with Runtime.open(Settings(data_dir=tmp_path, mirror="none")) as app.runtime:
            assert (await client.get("/sessions")).status_code == 200
        assert [await refused(path) for path in paths] == [True] * 3


async def test_probes_are_answered_beside_the_api_and_at_the_root(tmp_path: Path) -> None:
    async with (
        Runtime.open(Settings(data_dir=tmp_path, mirror="none")) as runtime,
        client_of(create_app(runtime), prefix="") as client,
    ):
        for prefix in ("", "/api/v1"):
            assert (await client.get(f"{prefix}/healthz")).json() == {"status": "ok"}
            ready = (await client.get(f"{prefix}/readyz")).json()
            assert ready["status"] == "ok"
            assert ready["stores"]["journal"] == "ok"
            assert (await client.get(f"{prefix}/version")).json()["sojourn"]


@asynccontextmanager
async def lifespan_of(app: Starlette) -> AsyncIterator[None]:
    async with app.router.lifespan_context(app):
        yield


async def test_a_standalone_application_opens_and_closes_its_own_runtime(tmp_path: Path) -> None:
    app = standalone(Settings(data_dir=tmp_path, mirror="none"))
    async with client_of(app) as client:
        assert (await client.get("/sessions")).status_code == 503
        async with lifespan_of(app):
            assert (await client.post("/sessions", json={})).status_code == 201
        assert (await client.get("/sessions")).status_code == 503
        async with lifespan_of(app):
            assert len((await client.get("/sessions")).json()["items"]) == 1


async def test_a_host_opens_the_runtime_in_its_own_lifespan(tmp_path: Path) -> None:
    api = create_app()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with Runtime.open(Settings(data_dir=tmp_path, mirror="none")) as api.runtime:
            yield

    host = Starlette(routes=[Mount("/sojourn", app=api)], lifespan=lifespan)
    async with client_of(host, prefix="/sojourn/api/v1") as client:
        assert (await client.get("/sessions")).status_code == 503
        async with lifespan_of(host):
            assert (await client.get("/sessions")).status_code == 200


async def test_an_error_of_our_own_is_a_500_that_names_the_request_and_nothing_else(tmp_path: Path) -> None:
    app = create_app()

    class Broken:
        is_open = True

        def __getattr__(self, name: str) -> object:
            raise RuntimeError("the inside")

    app.runtime = Broken()  # type: ignore[assignment]
    async with client_of(app) as client:
        response = await client.get("/sessions", headers={"x-request-id": "req-9"})
        problem = response.json()
        assert (response.status_code, problem["code"], problem["request_id"]) == (500, "internal", "req-9")
        assert "req-9" in problem["detail"]
        assert "inside" not in response.text


async def test_a_websocket_is_closed_without_an_answer(tmp_path: Path) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "websocket", "path": "/api/v1/sessions", "headers": []}
    await create_app()(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


async def test_a_client_that_goes_away_in_the_middle_of_its_body_is_no_error(tmp_path: Path) -> None:
    incoming: list[Message] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return incoming.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    async with Runtime.open(Settings(data_dir=tmp_path, mirror="none")) as runtime:
        scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": "/api/v1/sessions",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        await create_app(runtime)(scope, receive, send)
    assert sent == []


async def test_an_error_after_the_answer_has_begun_breaks_it_off(tmp_path: Path) -> None:
    """What was sent cannot be unsaid; the server logs the error and closes the connection."""
    guard = Guard(_half_an_answer, token=None)
    async with Runtime.open(Settings(data_dir=tmp_path, mirror="none")) as guard.runtime:
        with pytest.raises(ZeroDivisionError):
            async with client_of(guard) as client:
                await client.get("/sessions")


async def _half_an_answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise ZeroDivisionError


async def test_readyz_names_the_store_that_is_not_well(tmp_path: Path) -> None:
    class Ailing:
        is_open = True

        def readiness(self) -> dict[str, str]:
            return {"journal": "no room", "catalog": "ok", "mirror": "crashed"}

        def mirror_statistics(self) -> None:
            return None

    app = create_app()
    app.runtime = Ailing()  # type: ignore[assignment]
    async with client_of(app) as client:
        response = await client.get("/readyz")
        assert response.status_code == 503
        stores = {"catalog": "ok", "journal": "no room", "mirror": "crashed"}
        assert response.json() == {"mirror": None, "status": "unavailable", "stores": stores}
        assert response.headers["retry-after"] == "1"


async def test_readyz_is_well_without_its_mirror(tmp_path: Path) -> None:
    class Alone:
        is_open = True

        def readiness(self) -> dict[str, str]:
            return {"journal": "ok", "mirror": "crashed", "mirror_server": "quarantined"}

        def mirror_statistics(self) -> None:
            return None

    app = create_app()
    app.runtime = Alone()  # type: ignore[assignment]
    async with client_of(app) as client:
        assert (await client.get("/readyz")).status_code == 200
