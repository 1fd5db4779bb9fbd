"""Timers over HTTP: set, shown, fired, refused."""

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.facade import ON_ASYNCIO, batch, command, facade, new_session
from tests.support.wait import await_until

pytestmark = ON_ASYNCIO


async def events(client: httpx2.AsyncClient, session_id: str, *types: str) -> list[dict[str, Any]]:
    answer = await client.get(f"/sessions/{session_id}/events?types={','.join(types)}")
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


async def test_a_timer_that_is_set_stands_in_state_record_and_list(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        timer = {"type": "timer.set", "key": "nightly", "at": "2999-01-01T03:00:00+01:00", "every_s": 86_400}
        await command(client, session_id, **timer)
        record = (await client.get(f"/sessions/{session_id}")).json()
        assert record["next_due_at"] == "2999-01-01T02:00:00Z"
        assert (await client.get("/sessions")).json()["items"][0]["next_due_at"] == record["next_due_at"]
        state = json.loads((await client.get(f"/sessions/{session_id}/state")).content)
        (event,) = await events(client, session_id, "timer.set")
        assert state["timers"] == {
            "nightly": {
                "action": None,
                "clock": "wall",
                "due_at": "2999-01-01T02:00:00Z",
                "every_s": 86_400.0,
                "fired": 0,
                "reason": None,
                "set_at": event["at"],
            }
        }
        await command(client, session_id, type="timer.cancel", key="nightly")
        assert (await client.get(f"/sessions/{session_id}")).json()["next_due_at"] is None


async def test_a_timer_that_is_due_fires_and_its_limit_ends_the_session(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        limit = {"key": "limit", "after_s": 0, "clock": "active", "action": "fail", "reason": "took too long"}
        told = {"key": "another", "after_s": 0}
        await batch(client, session_id, [{"type": "timer.set", **told}, {"type": "timer.set", **limit}])

        async def has_failed() -> bool:
            return bool((await client.get(f"/sessions/{session_id}")).json()["status"] == "failed")

        await await_until(has_failed)
        record = (await client.get(f"/sessions/{session_id}")).json()
        assert (record["outcome"], record["reason"]) == ("error", "took too long")
        fired = await events(client, session_id, "timer.fired", "session.failed")
        assert [event["data"].get("key") for event in fired] == ["another", "limit", None]
        assert [event["cause"] for event in fired] == [None, None, None]
        (told_set, _) = await events(client, session_id, "timer.set")
        assert fired[0]["data"] == {"due_at": told_set["at"], "key": "another", "missed": 0}


@pytest.mark.parametrize(
    ("body", "status", "code", "pointer"),
    [
        ({"type": "timer.cancel", "key": "gone"}, 409, "no_such_timer", "/key"),
        ({"type": "timer.tick"}, 400, "unknown_type", "/type"),
        ({"type": "timer.fired", "key": "k", "due_at": "2026-01-01T00:00:00Z"}, 400, "unknown_type", "/type"),
        ({"type": "timer.set", "key": "k"}, 400, "missing_field", "/after_s"),
        ({"type": "timer.set", "key": "k", "after_s": 1, "every_s": 0.01}, 400, "invalid_field", "/every_s"),
    ],
)
async def test_what_cannot_be_is_refused_with_its_field(
    tmp_path: Path, body: dict[str, Any], status: int, code: str, pointer: str
) -> None:
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        response = await client.post(f"/sessions/{session_id}/commands", json=body)
        problem = response.json()
        assert (response.status_code, problem["code"]) == (status, code)
        assert problem["errors"][0]["pointer"] == pointer


async def test_a_session_holds_64_timers_and_says_which_limit_it_is(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        outcomes = await batch(
            client, session_id, [{"type": "timer.set", "key": f"k{n}", "after_s": 9_999} for n in range(65)]
        )
        assert [outcome["ok"] for outcome in outcomes] == [True] * 64 + [False]
        assert outcomes[-1]["error"]["code"] == "limit_reached"
        assert outcomes[-1]["error"]["limit"] == "timers_max"


async def test_a_timer_outlives_the_server(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        await command(client, session_id, type="timer.set", key="later", after_s=9_999)
        before = (await client.get(f"/sessions/{session_id}")).json()["next_due_at"]
    async with facade(tmp_path) as client:
        assert (await client.get(f"/sessions/{session_id}")).json()["next_due_at"] == before
        await command(client, session_id, type="timer.set", key="later", after_s=0)

        async def has_fired() -> bool:
            return bool(await events(client, session_id, "timer.fired"))

        await await_until(has_fired)
