"""What is set aside, over HTTP and as programs."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2

from sojourn.actors.ports import Record, RecordKind
from sojourn.actors.session.poison import Hold, encode_mark
from sojourn.http.app import create_app
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings

from ..support.command_line import sojourn
from ..support.facade import ON_ASYNCIO, UNKNOWN_ID, batch, client_of, new_session
from ..support.poison import Fuse, with_fuse
from ..support.serve import serve

RESULT = {"type": "result.record", "case_id": "case", "outcome": "passed", "duration_s": 1.0}


@asynccontextmanager
async def fused(data_dir: Path) -> AsyncIterator[tuple[httpx2.AsyncClient, Fuse, Runtime]]:
    """A client of a runtime with an armed fuse."""
    settings, fuse = with_fuse(Settings(data_dir=data_dir))
    async with Runtime.open(settings) as runtime, client_of(create_app(runtime)) as client:
        yield client, fuse, runtime


async def poisoned(client: httpx2.AsyncClient, session_id: str, **identity: Any) -> None:
    answer = await client.post(f"/sessions/{session_id}/commands", json=RESULT | identity)
    assert (answer.status_code, answer.json()["code"]) == (422, "quarantined")
    assert "sojourn quarantine show" in answer.json()["detail"]


class TestOverHttp:
    pytestmark = ON_ASYNCIO

    async def test_what_is_set_aside_is_listed_shown_retried_edited_and_skipped(self, tmp_path: Path) -> None:
        async with fused(tmp_path) as (client, fuse, _):
            session_id = await new_session(client)
            for command_id in ("c1", "c2", "c3"):
                await poisoned(client, session_id, command_id=command_id)
            path = f"/sessions/{session_id}/quarantine"
            everywhere, here = (await client.get("/quarantine")).json(), (await client.get(path)).json()
            assert everywhere == here
            assert [(item["number"], item["command_id"]) for item in here["items"]] == [
                (1, "c1"),
                (2, "c2"),
                (3, "c3"),
            ]
            shown = (await client.get(f"{path}/1")).json()
            assert shown["command"] == RESULT | {"command_id": "c1"}
            assert shown["traceback"].endswith("RuntimeError: boom\n")
            again = await client.post(f"{path}/1/retry")
            assert (again.status_code, again.json()["code"]) == (422, "quarantined")
            fuse.armed = False
            answer = await client.post(f"{path}/1/retry")
            assert answer.json() == {"duplicate": False, "ok": True, "sent": True, "seq": 3}
            wrong = await client.post(f"{path}/2/edit", json={"case_id": 7, "command_id": "x"})
            assert (wrong.status_code, wrong.json()["code"]) == (400, "invalid_field")
            fields = {"case_id": "mended", "outcome": "passed", "duration_s": 2.0}
            answer = await client.post(f"{path}/2/edit", json=fields)
            assert answer.json() == {"duplicate": False, "ok": True, "sent": True, "seq": 4}
            assert (await client.post(f"{path}/3/skip")).status_code == 204
            assert (await client.get(path)).json() == {"items": []}
            gone = await client.post(f"{path}/3/skip")
            assert (gone.status_code, gone.json()["code"]) == (404, "not_quarantined")

    async def test_a_line_of_a_batch_is_told_that_it_is_set_aside_and_the_others_are_done(
        self, tmp_path: Path
    ) -> None:
        async with fused(tmp_path) as (client, _, _):
            session_id = await new_session(client)
            line = {"type": "log.append", "stream": "stdout", "text": "x"}
            outcomes = await batch(
                client,
                session_id,
                [
                    line | {"command_id": "a"},
                    RESULT | {"command_id": "b"},
                    line | {"command_id": "c"},
                ],
            )
            assert [outcome["ok"] for outcome in outcomes] == [True, False, True]
            assert outcomes[1]["error"]["code"] == "quarantined"

    async def test_what_is_not_there_is_said(self, tmp_path: Path) -> None:
        async with fused(tmp_path) as (client, _, _):
            session_id = await new_session(client)
            for method, path, code in (
                ("GET", f"/sessions/{UNKNOWN_ID}/quarantine", "no_such_session"),
                ("POST", f"/sessions/{UNKNOWN_ID}/quarantine/release", "no_such_session"),
                ("GET", f"/sessions/{session_id}/quarantine/1", "not_quarantined"),
                ("GET", f"/sessions/{session_id}/quarantine/{'9' * 99}", "not_quarantined"),
                ("POST", f"/sessions/{session_id}/quarantine/-1/skip", "not_quarantined"),
                ("GET", f"/sessions/{session_id}/quarantine?all=1", "unknown_field"),
                ("DELETE", f"/sessions/{session_id}/quarantine/1", "method_not_allowed"),
            ):
                answer = await client.request(method, path)
                assert answer.json()["code"] == code
            answer = await client.post(f"/sessions/{session_id}/quarantine/release")
            assert answer.json() == {"ok": True, "released": False}

    async def test_a_session_that_is_set_aside_says_so_takes_nothing_and_is_released(
        self, tmp_path: Path
    ) -> None:
        async with (
            Runtime.open(Settings(data_dir=tmp_path)) as runtime,
            client_of(create_app(runtime)) as client,
        ):
            session_id = await new_session(client)
            await hold(runtime, session_id)
        async with fused(tmp_path) as (client, _, _):
            record = (await client.get(f"/sessions/{session_id}")).json()
            assert record["quarantined"]["reason"] == "crash_loop"
            listed = (await client.get("/sessions")).json()["items"]
            assert [item["quarantined"]["crash"] for item in listed] == ["RuntimeError: boom"]
            path = f"/sessions/{session_id}/commands"
            answer = await client.post(path, json={"type": "session.pause"})
            assert (answer.status_code, answer.json()["code"]) == (503, "actor_quarantined")
            assert "sojourn quarantine ls" in answer.json()["detail"]
            answer = await client.post(f"/sessions/{session_id}/quarantine/release")
            assert answer.json() == {"ok": True, "released": True}
            assert (await client.post(path, json={"type": "session.pause"})).status_code == 200


async def hold(runtime: Runtime, session_id: str) -> None:
    """As when it has crashed in a loop."""
    at = runtime._clock.now()
    payload = encode_mark(Hold(at=at, crash="RuntimeError: boom", traceback="..."))
    mark = Record(session_id, 0, 0, runtime.epoch, payload, RecordKind.QUARANTINE)
    await runtime._journal.append([mark])


def test_a_person_looks_and_decides_on_the_command_line(tmp_path: Path) -> None:
    data = tmp_path / "data"

    async def fill() -> tuple[str, str]:
        async with fused(data) as (client, _, runtime):
            session_id, held = await new_session(client), await new_session(client)
            for command_id in ("c1", "c2", "c3"):
                await poisoned(client, session_id, command_id=command_id)
            await hold(runtime, held)
            return session_id, held

    session_id, held = anyio.run(fill)
    found = json.loads(sojourn("doctor", "--data", data, "--json", code=1))["findings"]
    told = {finding["check"]: finding for finding in found}
    assert f"{session_id} 1, {session_id} 2" in told["quarantine"]["detail"]
    assert "sojourn quarantine show" in told["quarantine"]["remedy"]
    assert held in told["crash loops"]["detail"]
    with serve(data, "--port", "0", log=tmp_path / "serve.log"):
        where = ("--data", data)
        assert "set aside, see `sojourn doctor`: RuntimeError: boom" in sojourn("show", held, *where)
        lines = sojourn("quarantine", "ls", *where).splitlines()
        assert len(lines) == 4
        assert "result.record c1: RuntimeError: boom" in lines[0] + lines[1]
        shown = sojourn("quarantine", "show", session_id, "1", *where)
        assert '"case_id":"case"' in shown
        assert "RuntimeError: boom" in shown.splitlines()[-1]
        assert "is 3" in sojourn("quarantine", "retry", session_id, "1", *where)
        fields = json.dumps({"case_id": "mended", "outcome": "passed", "duration_s": 2.0})
        edited = json.loads(sojourn("quarantine", "edit", session_id, "2", fields, "--json", *where))
        assert edited == {"duplicate": False, "ok": True, "sent": True, "seq": 4}
        assert "no JSON object" in sojourn("quarantine", "edit", session_id, "3", "[1]", *where, code=2)
        assert "is dropped" in sojourn("quarantine", "skip", session_id, "3", *where)
        assert "is not set aside" in sojourn("quarantine", "skip", session_id, "3", *where, code=2)
        assert "may start again" in sojourn("quarantine", "release", held, *where)
        assert "nothing was done" in sojourn("quarantine", "release", held, *where)
        assert json.loads(sojourn("quarantine", "ls", "--json", *where)) == {"items": []}
