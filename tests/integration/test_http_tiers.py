"""Tiers over HTTP: the seal, sessions that were handed over, and what may change of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sojourn.http.app import create_app
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings

from ..support.facade import ON_ASYNCIO, UNKNOWN_ID, client_of, command, log_line, new_session
from ..support.wait import await_until

pytestmark = ON_ASYNCIO


@asynccontextmanager
async def patient(folder: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """A facade that seals nothing by itself."""
    settings = Settings(data_dir=folder, seal_after_s=3_600.0, mirror="none")
    async with Runtime.open(settings) as runtime, client_of(create_app(runtime)) as client:
        yield client


async def sealed(client: httpx2.AsyncClient) -> str:
    """A session that was handed over; its id."""
    session_id = await new_session(client, plan="nightly", title="as recorded")
    await command(client, session_id, **log_line("one"), command_id="c1")
    await command(client, session_id, type="session.complete", outcome="passed")
    await command(client, session_id, type="session.seal")

    async def recent() -> bool:
        return bool((await shown(client, session_id))["tier"] == "recent")

    await await_until(recent)
    return session_id


async def shown(client: httpx2.AsyncClient, session_id: str) -> Any:
    return (await client.get(f"/sessions/{session_id}")).json()


async def test_a_seal_before_the_end_is_refused_and_nothing_is_legal_after_it(tmp_path: Path) -> None:
    async with patient(tmp_path) as client:
        session_id = await new_session(client)
        early = await client.post(f"/sessions/{session_id}/commands", json={"type": "session.seal"})
        assert (early.status_code, early.json()["code"]) == (409, "illegal_in_status")
        session_id = await sealed(client)
        for late in (log_line("late"), {"type": "session.seal"}):
            answer = await client.post(f"/sessions/{session_id}/commands", json=late)
            assert (answer.status_code, answer.json()["code"]) == (409, "sealed")
            assert "record a new session" in answer.json()["detail"]
        again = await command(client, session_id, **log_line("one"), command_id="c1")
        assert again["duplicate"] is True
        body = {"type": "session.seal", "surplus": 1}
        wrong = await client.post(f"/sessions/{session_id}/commands", json=body)
        assert (wrong.status_code, wrong.json()["code"]) == (400, "unknown_field")


async def test_lists_select_by_tier(tmp_path: Path) -> None:
    async with patient(tmp_path) as client:
        active, recent = await new_session(client), await sealed(client)

        async def listed(tier: str) -> list[str]:
            page = (await client.get("/sessions", params={"tier": tier})).json()
            return [item["session_id"] for item in page["items"]]

        assert await listed("active") == [active]
        assert await listed("recent") == [recent]
        assert await listed("archive") == []
        assert sorted(await listed("active,recent")) == sorted([active, recent])
        wrong = await client.get("/sessions", params={"tier": "attic"})
        assert (wrong.status_code, wrong.json()["errors"][0]["parameter"]) == (400, "tier")
        cursor = (await client.get("/sessions", params={"tier": "active,recent", "limit": 1})).json()["next"]
        other = await client.get("/sessions", params={"tier": "active", "cursor": cursor})
        assert (other.status_code, other.json()["errors"][0]["parameter"]) == (400, "cursor")


async def test_title_and_tags_of_a_sealed_session_are_patched_and_the_tag_of_the_record_with_them(
    tmp_path: Path,
) -> None:
    async with patient(tmp_path) as client:
        session_id = await sealed(client)
        path = f"/sessions/{session_id}"
        before = await client.get(path)
        headers = {"content-type": "application/merge-patch+json"}
        patched = await client.patch(path, content=b'{"title":"named","tags":["a","b"]}', headers=headers)
        assert patched.status_code == 200
        assert (patched.json()["title"], patched.json()["tags"]) == ("named", ["a", "b"])
        stale = await client.get(path, headers={"if-none-match": before.headers["etag"]})
        assert (stale.status_code, stale.json()) == (200, patched.json())
        fresh = await client.get(path, headers={"if-none-match": patched.headers["etag"]})
        assert fresh.status_code == 304
        back = await client.patch(path, json={"title": None})
        assert (back.json()["title"], back.json()["tags"]) == ("as recorded", ["a", "b"])
        assert back.json()["seq"] == before.json()["seq"]
        (item,) = (await client.get("/sessions")).json()["items"]
        assert item == back.json()


async def test_a_session_that_is_not_sealed_is_not_patched(tmp_path: Path) -> None:
    async with patient(tmp_path) as client:
        session_id = await new_session(client, title="t")
        refused = await client.patch(f"/sessions/{session_id}", json={"title": "x"})
        assert (refused.status_code, refused.json()["code"]) == (409, "not_sealed")
        assert (await shown(client, session_id))["title"] == "t"
        assert (await client.patch(f"/sessions/{UNKNOWN_ID}", json={"title": "x"})).status_code == 404


@pytest.mark.parametrize(
    ("body", "code", "pointers"),
    [
        ({}, "invalid_field", [""]),
        ([], "invalid_json", [""]),
        ({"title": 1}, "invalid_field", ["/title"]),
        ({"tags": "a"}, "invalid_field", ["/tags"]),
        ({"tags": ["a", 1]}, "invalid_field", ["/tags"]),
        ({"plan": "x", "a/b": 1}, "unknown_field", ["/a~1b", "/plan"]),
        ({"title": "x" * 513}, "too_large", ["/title"]),
        ({"tags": ["a", "a"]}, "invalid_field", ["/tags/1"]),
        ({"tags": ["x" * 129]}, "invalid_field", ["/tags/0"]),
        ({"tags": [str(n) for n in range(51)]}, "too_large", ["/tags"]),
    ],
)
async def test_a_patch_with_a_mistake_changes_nothing_and_names_it(
    tmp_path: Path, body: Any, code: str, pointers: list[str]
) -> None:
    async with patient(tmp_path) as client:
        session_id = await sealed(client)
        before = await shown(client, session_id)
        refused = await client.patch(f"/sessions/{session_id}", json=body)
        assert (refused.status_code, refused.json()["code"]) == (400, code)
        assert [error["pointer"] for error in refused.json()["errors"]] == pointers
        assert await shown(client, session_id) == before
