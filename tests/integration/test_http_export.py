"""`GET /sessions/{id}/export`: what comes, as what, and what a client sees of a history that breaks off."""

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
from attrs import define, field

from sojourn.actors.errors import Damaged
from sojourn.client import ServerClient, ServerProblem, ServerUnreachable
from sojourn.http.app import create_app
from sojourn.runtime.live import Line
from sojourn.runtime.runtime import Runtime
from tests.support.facade import API, ON_ASYNCIO, UNKNOWN_ID, batch, facade, log_line, new_session, serving

pytestmark = ON_ASYNCIO
MEDIA_TYPES = {"json": "application/json", "ndjson": "application/x-ndjson", "junit": "application/xml"}
SUFFIXES = {"json": "json", "ndjson": "ndjson", "junit": "junit.xml"}


async def filled(client: httpx2.AsyncClient) -> str:
    session_id = await new_session(client, plan="p")
    result = {
        "type": "result.record",
        "case_id": "t::a",
        "outcome": "failed",
        "duration_s": 0.1,
        "details": "why",
    }
    await batch(client, session_id, [log_line("a line"), result])
    return session_id


@pytest.mark.parametrize("kind", MEDIA_TYPES)
async def test_an_export_is_a_file_to_be_saved_and_not_shown(tmp_path: Path, kind: str) -> None:
    async with facade(tmp_path) as client:
        session_id = await filled(client)
        answer = await client.get(f"/sessions/{session_id}/export", params={"format": kind})
        assert answer.status_code == 200
        assert answer.headers["content-type"].split(";")[0] == MEDIA_TYPES[kind]
        name = f"{session_id}.{SUFFIXES[kind]}"
        assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
        assert answer.headers["x-content-type-options"] == "nosniff"
        head = await client.head(f"/sessions/{session_id}/export", params={"format": kind})
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-disposition"] == answer.headers["content-disposition"]


async def test_an_export_holds_what_the_other_routes_say(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        session_id = await filled(client)
        document = (await client.get(f"/sessions/{session_id}/export")).json()
        assert document["record"]["session_id"] == session_id
        assert document["state"] == (await client.get(f"/sessions/{session_id}/state")).json()
        assert document["events"] == (await client.get(f"/sessions/{session_id}/events")).json()["items"]
        lines = await client.get(f"/sessions/{session_id}/export", params={"format": "ndjson"})
        assert [json.loads(line) for line in lines.content.splitlines()] == document["events"]
        junit = await client.get(f"/sessions/{session_id}/export", params={"format": "junit"})
        assert b"<failure message=" in junit.content
        assert b">why</failure>" in junit.content


async def test_what_cannot_be_exported_is_a_problem_document(tmp_path: Path) -> None:
    async with facade(tmp_path, token="t") as client:
        headers = {"authorization": "Bearer t"}
        missing = await client.get(f"/sessions/{UNKNOWN_ID}/export", headers=headers)
        assert (missing.status_code, missing.json()["code"]) == (404, "no_such_session")
        unknown = await client.get(f"/sessions/{UNKNOWN_ID}/export?format=pdf", headers=headers)
        assert (unknown.status_code, unknown.json()["code"]) == (400, "invalid_field")
        assert "json, ndjson, junit" in unknown.json()["detail"]
        assert (await client.get(f"/sessions/{UNKNOWN_ID}/export")).status_code == 401


@define
class BreakingOff:
    """A runtime whose one session is damaged after `whole` events of 1 KiB."""

    whole: int
    is_open: bool = True
    session_id: str = field(default=UNKNOWN_ID)

    async def snapshot(self, session_id: str) -> tuple[dict[str, Any], int, bytes]:
        record = {"session_id": session_id, "environment": {}, "plan": "p"}
        return record, self.whole + 10, b'{"results":{}}'

    async def events(self, session_id: str) -> AsyncGenerator[Line]:
        for seq in range(1, self.whole + 1):
            yield Line(1, seq, "log.appended", b'{"fill":"%s"}' % (b"x" * 1_000))
        raise Damaged("a record does not carry its checksum")


async def test_damage_before_the_first_byte_is_a_problem_document() -> None:
    app = create_app(cast(Runtime, BreakingOff(0)))
    async with serving(app) as port, ServerClient(url=f"http://127.0.0.1:{port}") as client:
        with pytest.raises(ServerProblem) as caught:
            await anext(client.export(UNKNOWN_ID, "ndjson"))
    assert (caught.value.status, caught.value.code) == (500, "damaged")


async def test_damage_in_between_breaks_the_connection_off() -> None:
    taken: list[bytes] = []

    async def take(client: ServerClient) -> None:
        async for chunk in client.export(UNKNOWN_ID, "ndjson"):
            taken.append(chunk)

    async with serving(create_app(cast(Runtime, BreakingOff(300)))) as port:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}{API}", trust_env=False) as client:
            with pytest.raises(httpx2.RemoteProtocolError):
                await client.get(f"/sessions/{UNKNOWN_ID}/export?format=ndjson")
        async with ServerClient(url=f"http://127.0.0.1:{port}") as ours:
            with pytest.raises(ServerUnreachable, match=r"the export broke off after .* bytes; try it again"):
                await take(ours)
    assert sum(map(len, taken)) > 100_000
