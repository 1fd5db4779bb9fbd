"""Sessions over HTTP: create, list, show, state, and what every path answers."""

import json
from pathlib import Path

from starlette.applications import Starlette
from starlette.routing import Mount

from sojourn.http.app import create_app
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from tests.support.facade import ON_ASYNCIO, UNKNOWN_ID, client_of, command, facade, log_line, new_session

pytestmark = ON_ASYNCIO

RECORD_KEYS = {
    "session_id", "created_at", "updated_at", "user_id", "status", "metadata", "storage", "title", "plan", "environment",
    "outcome", "exit_code", "reason", "started_at", "ended_at", "duration_s", "tier", "lost", "last_sign_at", "seq",
    "epoch", "progress", "results", "resources", "logs", "losses", "damaged", "sealed_at", "tags", "next_due_at",
    "quarantined",
}  # fmt: skip


async def test_a_session_is_created_with_its_location_and_entity_tag(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        response = await client.post("/sessions", json={"title": "nightly", "metadata": {"branch": "main"}})
        assert response.status_code == 201
        record = response.json()
        assert response.headers["location"] == f"/api/v1/sessions/{record['session_id']}"
        assert response.headers["etag"] == '"1"'
        assert record["metadata"]["branch"] == "main"
        assert (await client.get(f"/sessions/{record['session_id']}")).json()["title"] == "nightly"


async def test_a_record_has_the_fields_of_the_protocol_and_times_in_utc(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        record = (await client.post("/sessions", json={})).json()
        assert record.keys() == RECORD_KEYS
        assert record["created_at"].endswith("Z")
        assert record["status"] == "created"
        assert record["lost"] is False


async def test_an_idempotency_key_creates_once_and_replays_the_answer(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        headers = {"idempotency-key": "k-1"}
        first = await client.post("/sessions", json={"title": "one"}, headers=headers)
        again = await client.post("/sessions", json={"title": "one"}, headers=headers)
        assert (first.status_code, again.status_code) == (201, 201)
        assert again.json()["session_id"] == first.json()["session_id"]
        assert "idempotency-replayed" not in first.headers
        assert again.headers["idempotency-replayed"] == "true"
        assert len((await client.get("/sessions")).json()["items"]) == 1


async def test_an_idempotency_key_with_another_body_is_refused(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        headers = {"idempotency-key": "k-1"}
        await client.post("/sessions", json={"title": "one"}, headers=headers)
        response = await client.post("/sessions", json={"title": "two"}, headers=headers)
        assert (response.status_code, response.json()["code"]) == (422, "idempotency_mismatch")


async def test_an_idempotency_key_over_128_characters_is_refused_by_name(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        response = await client.post("/sessions", json={}, headers={"idempotency-key": "k" * 129})
        assert response.status_code == 400
        assert response.json()["errors"][0]["header"] == "Idempotency-Key"


async def test_a_wrong_field_is_named_by_its_pointer(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        response = await client.post(
            "/sessions", json={"title": 7, "metadata": {"a/b": [1]}, "colour": "red"}
        )
        problem = response.json()
        assert response.status_code == 400
        assert response.headers["content-type"] == "application/problem+json"
        assert {error["pointer"] for error in problem["errors"]} == {"/title", "/metadata/a~1b", "/colour"}
        assert problem["status"] == 400
        assert problem["instance"] == "/api/v1/sessions"
        assert problem["title"]


async def test_a_walk_by_cursor_meets_every_session_once_newest_first(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        made = [await new_session(client, start=False, title=str(number)) for number in range(7)]
        met, cursor = [], None
        while True:
            params = {"limit": "3"} | ({"cursor": cursor} if cursor else {})
            page = (await client.get("/sessions", params=params)).json()
            met += [item["session_id"] for item in page["items"]]
            cursor = page["next"]
            if cursor is None:
                break
        assert met == made[::-1]


async def test_lists_select_by_plan_and_status(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        running = await new_session(client, plan="a")
        created = await new_session(client, plan="a", start=False)
        await new_session(client, plan="b")

        async def ids(**params: str) -> set[str]:
            response = await client.get("/sessions", params=params)
            return {item["session_id"] for item in response.json()["items"]}

        assert await ids(plan="a") == {running, created}
        assert await ids(plan="a", status="running") == {running}
        assert await ids(plan="a", status="running,created") == {running, created}
        assert await ids(plan="c") == set()


async def test_a_broken_cursor_is_refused_by_name(tmp_path: Path) -> None:
    no_session = (
        "WyIyMDI2LTExLTIyVDEwOjAwOjAwWiIsIi4uLy4uIiwiYWJjIl0"  # ["2026-11-22T10:00:00Z","../..","abc"]
    )
    async with facade(tmp_path) as client:
        for cursor in ("", "x", "!!!", "e30", "\0", no_session, "a" * 1025):
            response = await client.get("/sessions", params={"cursor": cursor})
            assert response.status_code == 400, cursor
            assert response.json()["errors"][0]["parameter"] == "cursor"


async def test_a_cursor_of_another_query_is_refused(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        for _ in range(2):
            await new_session(client, plan="a", start=False)
        cursor = (await client.get("/sessions", params={"limit": "1", "plan": "a"})).json()["next"]
        response = await client.get("/sessions", params={"limit": "1", "cursor": cursor})
        assert response.status_code == 400
        assert "other filters" in response.json()["detail"]


WRONG_PARAMETERS = {
    "limit=0": "limit",
    "limit=1001": "limit",
    "limit=ten": "limit",
    "limit=%D9%A1": "limit",
    "limit=99999999999999999999999": "limit",
    "status=lost": "status",
    "status=": "status",
    "limit=1&limit=2": "limit",
    "colour=red": "colour",
}


async def test_a_wrong_parameter_is_refused_by_name(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        for params, name in WRONG_PARAMETERS.items():
            response = await client.get(f"/sessions?{params}")
            assert response.status_code == 400, params
            assert response.json()["errors"][0]["parameter"] == name


async def test_a_record_that_has_not_changed_is_304(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        tag = (await client.get(f"/sessions/{session_id}")).headers["etag"]
        for sent in (tag, f'"0", W/{tag}', "*"):
            response = await client.get(f"/sessions/{session_id}", headers={"if-none-match": sent})
            assert (response.status_code, response.content) == (304, b"")
            assert response.headers["etag"] == tag
        await command(client, session_id, **log_line("more"))
        response = await client.get(f"/sessions/{session_id}", headers={"if-none-match": tag})
        assert response.status_code == 200


async def test_the_state_is_canonical_json_with_its_seq_as_tag(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        response = await client.get(f"/sessions/{session_id}/state")
        state = json.loads(response.content)
        assert list(state) == [
            "active_clock",
            "counters",
            "header",
            "losses",
            "progress",
            "resources",
            "results",
            "seq",
            "timers",
            "updated_at",
        ]
        canonical = json.dumps(state, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert response.content == canonical.encode()
        assert response.headers["etag"] == f'"{state["seq"]}"'
        again = await client.get(
            f"/sessions/{session_id}/state", headers={"if-none-match": response.headers["etag"]}
        )
        assert again.status_code == 304


NO_SESSIONS = [
    UNKNOWN_ID,
    "sess_",
    "x",
    "..%2F..%2Fetc%2Fpasswd",
    "%2e%2e",
    "sess_%00",
    "a" * 300,
    "%E2%80%AE",
]


async def test_an_id_that_names_no_session_is_404(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        for session_id in NO_SESSIONS:
            for tail in ("", "/state", "/events", "/stream"):
                response = await client.get(f"/sessions/{session_id}{tail}")
                assert response.status_code == 404, session_id
                assert response.json()["code"] in ("no_such_session", "no_such_path")


async def test_head_answers_the_headers_of_get_without_a_body(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        for tail in ("", "/state", "/events"):
            head = await client.head(f"/sessions/{session_id}{tail}")
            assert (head.status_code, head.content) == (200, b"")
            assert int(head.headers["content-length"]) > 2


async def test_options_and_a_wrong_verb_name_what_the_path_takes(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        options = await client.options("/sessions")
        assert (options.status_code, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")
        wrong = await client.delete("/sessions")
        assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")
        assert wrong.headers["allow"] == "GET, HEAD, OPTIONS, POST"
        strange = await client.request("BREW", f"/sessions/{UNKNOWN_ID}/commands")
        assert (strange.status_code, strange.headers["allow"]) == (405, "OPTIONS, POST")


async def test_an_unknown_path_is_a_problem_document(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        for path in ("/nothing", "/sessions/", "", "/sessions//state"):
            response = await client.get(path)
            assert response.status_code == 404
            assert response.json()["code"] == "no_such_path"


async def test_a_request_id_is_taken_over_when_it_is_clean(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        answers = [
            await client.get(path, headers={"x-request-id": "req-7"}) for path in ("/sessions", "/nothing")
        ]
        assert [answer.headers["x-request-id"] for answer in answers] == ["req-7", "req-7"]
        assert answers[1].json()["request_id"] == "req-7"
        for given in (b"", b"x" * 129, b"a b", b"\xff"):
            response = await client.get("/sessions", headers={b"x-request-id": given})
            assert len(response.headers["x-request-id"]) == 16


async def test_under_a_prefix_of_the_host_locations_and_instances_carry_it(tmp_path: Path) -> None:
    async with Runtime.open(Settings(data_dir=tmp_path, mirror="none")) as runtime:
        host = Starlette(routes=[Mount("/tools/so journ", app=create_app(runtime))])
        async with client_of(host, prefix="/tools/so%20journ/api/v1") as client:
            created = await client.post("/sessions", json={})
            assert created.headers["location"].startswith("/tools/so%20journ/api/v1/sessions/sess_")
            assert (await client.get(created.headers["location"].split("/api/v1")[1])).status_code == 200
            missing = await client.get("/nothing")
            assert missing.json()["instance"] == "/tools/so%20journ/api/v1/nothing"
