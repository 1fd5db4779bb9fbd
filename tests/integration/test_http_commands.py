"""Commands over HTTP: one, a batch, and what is refused."""

import json
from pathlib import Path
from typing import Any

import httpx2

from tests.support.facade import NDJSON, ON_ASYNCIO, UNKNOWN_ID, batch, command, facade, log_line, new_session

pytestmark = ON_ASYNCIO


async def send(
    client: httpx2.AsyncClient, session_id: str, body: Any, *, query: str = "", **headers: str
) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await client.post(
        f"/sessions/{session_id}/commands{query}",
        content=content,
        headers={"content-type": "application/json", **headers},
    )


async def test_a_command_is_answered_with_its_id_and_its_last_event(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        outcome = await command(client, session_id, **log_line("hello", command_id="c1"))
        assert outcome == {"command_id": "c1", "duplicate": False, "ok": True, "seq": 3}


async def test_the_same_command_again_is_answered_as_it_was(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        by_id = log_line("hello", command_id="c1")
        by_source = log_line("hello", source="rec-1", n=1)
        first = [await command(client, session_id, **body) for body in (by_id, by_source)]
        again = [await command(client, session_id, **body) for body in (by_id, by_source)]
        assert [outcome["duplicate"] for outcome in first] == [False, False]
        assert again == [{**outcome, "duplicate": True} for outcome in first]
        assert first[1] == {"duplicate": False, "n": 1, "ok": True, "seq": 4, "source": "rec-1"}


async def test_applied_promises_no_seq(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        response = await send(client, session_id, log_line("x", command_id="c1"), query="?ack=applied")
        assert response.json() == {"command_id": "c1", "ok": True}


async def test_an_ack_level_that_cannot_be_given_is_never_downgraded(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        response = await send(client, session_id, log_line("x"), query="?ack=mirrored")
        assert (response.status_code, response.json()["code"]) == (503, "durability_unavailable")
        assert (await send(client, session_id, log_line("x"), query="?ack=paper")).status_code == 400
        assert (await client.get(f"/sessions/{session_id}")).json()["logs"]["lines"] == 0


REFUSED: list[tuple[Any, int, str]] = [
    ({"type": "session.resume"}, 409, "illegal_in_status"),
    (log_line("x", source="s", n=5), 409, "out_of_order"),
    (log_line("other", command_id="c1"), 422, "idempotency_mismatch"),
    ({"type": "session.create"}, 400, "unknown_type"),
    ({"type": "session.abandon", "reason": "silence"}, 400, "unknown_type"),
    ({"type": "log.append", "stream": "stdout"}, 400, "missing_field"),
    ({**log_line("x"), "extra": 1}, 400, "unknown_field"),
    (log_line("x" * (64 * 1024 + 1)), 400, "too_large"),
    (log_line("x" * (256 * 1024)), 413, "too_large"),
    ([], 400, "invalid_json"),
]


async def test_a_refused_command_answers_its_problem_and_changes_nothing(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        await command(client, session_id, **log_line("first", command_id="c1"))
        for body, status, code in REFUSED:
            response = await send(client, session_id, body)
            assert (response.status_code, response.json()["code"]) == (status, code)
            assert response.headers["content-type"] == "application/problem+json"
        assert (await client.get(f"/sessions/{session_id}")).json()["seq"] == 3


async def test_a_gap_in_a_source_names_the_number_that_is_expected(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        problem = (await send(client, session_id, log_line("x", source="s", n=5))).json()
        assert problem["expected"] == 1
        outcomes = await batch(client, session_id, [log_line("x", source="s", n=5)])
        assert outcomes[0]["error"]["expected"] == 1


async def test_a_command_of_the_wrong_status_names_the_status_and_what_is_legal(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        problem = (await send(client, session_id, {"type": "session.resume"})).json()
        assert "running" in problem["detail"]
        assert "session.pause" in problem["detail"]
        assert problem["errors"][0]["pointer"] == "/type"


async def test_one_bad_line_never_drops_the_rest(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        outcomes = await batch(
            client,
            session_id,
            [
                log_line("a", command_id="c1"),
                b"{not json",
                log_line("b", source="rec-1", n=1),
                b'{"type":"log.append","stream":"stdout","text":"\xff"}',
                {"type": "session.resume", "command_id": "c2"},
                {"type": "log.append", "source": "rec-2", "n": 1},
                log_line("c"),
                b"",
                json.dumps(log_line("x" * 300_000, command_id="c3")).encode(),
                log_line("d", command_id="c4"),
            ],
        )
        assert outcomes[0] == {"command_id": "c1", "duplicate": False, "ok": True, "seq": 3}
        assert (outcomes[1]["line"], outcomes[1]["error"]["code"]) == (2, "invalid_json")
        assert outcomes[2] == {"duplicate": False, "n": 1, "ok": True, "seq": 4, "source": "rec-1"}
        assert (outcomes[3]["line"], outcomes[3]["error"]["code"]) == (4, "invalid_utf8")
        assert (outcomes[4]["command_id"], outcomes[4]["error"]["code"]) == ("c2", "illegal_in_status")
        assert outcomes[4]["error"]["pointer"] == "/type"
        assert (outcomes[5]["source"], outcomes[5]["n"]) == ("rec-2", 1)
        assert outcomes[5]["error"]["code"] == "missing_field"
        assert outcomes[6] == {"duplicate": False, "line": 7, "ok": True, "seq": 5}
        assert (outcomes[7]["line"], outcomes[7]["ok"]) == (8, False)
        assert (outcomes[8]["line"], outcomes[8]["error"]["code"]) == (9, "too_large")
        assert outcomes[9] == {"command_id": "c4", "duplicate": False, "ok": True, "seq": 6}
        events = (await client.get(f"/sessions/{session_id}/events?after=2")).json()["items"]
        assert [event["data"]["text"] for event in events] == ["a", "b", "c", "d"]


async def test_a_batch_may_end_with_or_without_a_newline(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        line = json.dumps(log_line("x")).encode()
        for body, count in ((line, 1), (line + b"\n", 1), (line + b"\r\n" + line + b"\r\n", 2)):
            response = await client.post(f"/sessions/{session_id}/commands", content=body, headers=NDJSON)
            answers = [json.loads(answer) for answer in response.content.splitlines()]
            assert [answer["ok"] for answer in answers] == [True] * count


async def test_a_batch_over_a_limit_is_refused_whole(tmp_path: Path) -> None:
    batches = {b"": (400, "invalid_json"), b"\n": (400, "invalid_json")}
    batches |= dict.fromkeys([b"{}\n" * 1_001, b" " * (1024 * 1024 + 1)], (413, "too_large"))
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        for body, expected in batches.items():
            response = await client.post(f"/sessions/{session_id}/commands", content=body, headers=NDJSON)
            assert (response.status_code, response.json()["code"]) == expected


async def test_the_largest_batch_is_taken(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        outcomes = await batch(client, session_id, [log_line("x" * 900) for _ in range(1_000)])
        assert [outcome["seq"] for outcome in outcomes] == list(range(3, 1_003))


OTHER_TYPES = [
    {"content-type": "text/plain"},
    {"content-type": "application/json; charset=latin-1"},
    {"content-type": "application/json", "content-encoding": "gzip"},
    {"content-type": ""},
]


async def test_a_body_of_another_type_is_415(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        commands = f"/sessions/{await new_session(client)}/commands"
        for path in ("/sessions", commands):
            for headers in OTHER_TYPES:
                response = await client.post(path, content=b"{}", headers=headers)
                assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")
        for said in ("application/json; charset=UTF-8", "Application/JSON"):
            body = json.dumps(log_line("x")).encode()
            response = await client.post(commands, content=body, headers={"content-type": said})
            assert response.status_code == 200


async def test_a_heartbeat_is_taken_without_an_event(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        response = await client.post(f"/sessions/{session_id}/heartbeat")
        assert (response.status_code, response.content) == (204, b"")
        assert (await client.get(f"/sessions/{session_id}")).json()["seq"] == 2


async def test_nothing_can_be_sent_to_a_session_that_is_not_there(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        for session_id in (UNKNOWN_ID, "x"):
            assert (await send(client, session_id, log_line("x"))).status_code == 404
            assert (await client.post(f"/sessions/{session_id}/heartbeat")).status_code == 404
            lines = await client.post(f"/sessions/{session_id}/commands", content=b"{}", headers=NDJSON)
            assert (lines.status_code, lines.json()["code"]) == (404, "no_such_session")


async def test_events_come_in_pages_by_seq_and_type(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        await batch(client, session_id, [log_line(str(number)) for number in range(5)])
        events = f"/sessions/{session_id}/events"
        page = (await client.get(events, params={"limit": "3"})).json()
        assert ([event["seq"] for event in page["items"]], page["next"]) == ([1, 2, 3], 3)
        page = (await client.get(events, params={"limit": "4", "after": "3"})).json()
        assert ([event["seq"] for event in page["items"]], page["next"]) == ([4, 5, 6, 7], None)
        page = (
            await client.get(events, params={"types": "session.created,log.appended", "limit": "2"})
        ).json()
        assert ([event["seq"] for event in page["items"]], page["next"]) == ([1, 3], 3)
        for wrong in ("limit=0", "limit=10001", "after=-1", "types=log.append"):
            assert (await client.get(f"{events}?{wrong}")).status_code == 400


async def test_events_as_ndjson_are_the_stored_lines(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        await batch(client, session_id, [log_line("y" * 1_000) for _ in range(200)])
        events = f"/sessions/{session_id}/events"
        response = await client.get(f"{events}?limit=150", headers={"accept": "application/x-ndjson"})
        lines = response.content.splitlines()
        assert [json.loads(line)["seq"] for line in lines] == list(range(1, 151))
        assert json.loads(lines[0]) == (await client.get(f"{events}?limit=1")).json()["items"][0]
        missing = await client.get(
            f"/sessions/{UNKNOWN_ID}/events", headers={"accept": "application/x-ndjson"}
        )
        assert missing.status_code == 404


async def test_a_page_of_large_events_ends_before_the_limit_and_says_where_to_go_on(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        for _ in range(6):
            await batch(client, session_id, [log_line("z" * 60_000) for _ in range(16)])
        seen: list[int] = []
        after = 0
        while after is not None:
            response = await client.get(f"/sessions/{session_id}/events", params={"after": str(after)})
            assert len(response.content) <= 4 * 1024 * 1024 + 100
            page = response.json()
            seen += [event["seq"] for event in page["items"]]
            after = page["next"]
        assert seen == list(range(1, 99))
