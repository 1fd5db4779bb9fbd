"""Hostile input: the right status, never a 5xx, and nobody else notices."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import httpx2

from tests.support.facade import NDJSON, ON_ASYNCIO, command, facade, log_line, new_session, served

pytestmark = ON_ASYNCIO

LOG = b'{"type":"log.append","stream":"stdout","text":%b}'

BAD_BODIES = {
    "nothing": b"",
    "nul": b"\x00",
    "not json": b"{",
    "two values": b"{}{}",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "utf-16": '{"type":"session.pause"}'.encode("utf-16"),
    "invalid utf-8": LOG % b'"\xc3\x28"',
    "overlong utf-8": LOG % b'"\xc0\xaf"',
    "a surrogate in utf-8": LOG % b'"\xed\xa0\x80"',
    "a lone surrogate": LOG % rb'"\ud800"',
    "surrogates in the wrong order": LOG % rb'"\udc00\ud800"',
    "nan": LOG % b"NaN",
    "infinity": LOG % b"Infinity",
    "a huge float": LOG % b"1e400",
    "a huge integer": LOG % (b"9" * 5_000),
    "a number with leading zeros": LOG % b"007",
    "a string where a number belongs": b'{"type":"progress.report","done":"7"}',
    "a fraction where a whole number belongs": b'{"type":"progress.report","done":1.5}',
    "a negative count": b'{"type":"progress.report","done":-1}',
    "beyond 64 bits": b'{"type":"progress.report","done":18446744073709551616}',
    "a control character in a string": LOG % b'"\x01"',
    "33 levels": LOG % (b"[" * 33 + b"]" * 33),
    "100,000 levels": b"[" * 100_000,
    "100,000 objects": b'{"a":' * 100_000,
    "a list": b"[]",
    "null": b"null",
    "an object as type": b'{"type":{}}',
    "an unknown type": b'{"type":"session.destroy"}',
    "a nul in the command id": b'{"type":"session.pause","command_id":"a\\u0000"}',
    "an empty command id": b'{"type":"session.pause","command_id":""}',
    "a time without an offset": b'{"type":"log.append","stream":"s","text":"x","emitted_at":"2026-11-22T10:00:00"}',
    "a time out of range": b'{"type":"log.append","stream":"s","text":"x","emitted_at":"9999-12-31T23:59:59-23:00"}',
    "10,000 unknown keys": b'{"type":"session.pause",'
    + b",".join(b'"k%d":1' % n for n in range(10_000))
    + b"}",
}


async def test_a_hostile_body_is_the_callers_mistake_and_changes_nothing(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        for name, body in BAD_BODIES.items():
            response = await client.post(
                f"/sessions/{session_id}/commands",
                content=body,
                headers={"content-type": "application/json"},
            )
            assert response.status_code in (400, 413), (name, response.text)
            assert response.json()["code"] != "internal", name
            assert len(response.content) < 100_000, name
        record = (await client.get(f"/sessions/{session_id}")).json()
        assert (record["seq"], record["status"]) == (2, "running")


async def test_a_hostile_line_costs_that_line_only(tmp_path: Path) -> None:
    good = json.dumps(log_line("good")).encode()
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        for name, body in BAD_BODIES.items():
            lines = [good, body.replace(b"\n", b" "), good]
            response = await client.post(
                f"/sessions/{session_id}/commands", content=b"\n".join(lines), headers=NDJSON
            )
            assert response.status_code == 200, (name, response.text)
            outcomes = [json.loads(line) for line in response.content.splitlines()]
            assert [outcome["ok"] for outcome in outcomes] == [True, False, True], name


async def test_a_hostile_body_creates_nothing(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        for name, body in BAD_BODIES.items():
            response = await client.post(
                "/sessions", content=body, headers={"content-type": "application/json"}
            )
            assert response.status_code in (400, 413), (name, response.text)
        assert (await client.get("/sessions")).json()["items"] == []


async def test_strange_but_valid_text_is_kept_as_it_is(tmp_path: Path) -> None:
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        text = "\x00\x7f\x1b[31m\u202e\u2028\ufeff😀</script>=1+1 ../../etc/passwd %00 {}"
        await command(client, session_id, **log_line(text))
        events = (await client.get(f"/sessions/{session_id}/events?after=2")).json()["items"]
        assert events[0]["data"]["text"] == text


async def test_of_a_doubled_key_the_last_one_counts(tmp_path: Path) -> None:
    """As in every JSON parser of the field (RFC 8259, 4): not refused, and never one reading here, another there."""
    async with facade(tmp_path) as client:
        session_id = await new_session(client)
        response = await client.post(
            f"/sessions/{session_id}/commands",
            content=b'{"type":"log.append","stream":"s","text":"first","text":"last"}',
            headers={"content-type": "application/json"},
        )
        assert response.status_code == 200
        events = (await client.get(f"/sessions/{session_id}/events?after=2")).json()["items"]
        assert events[0]["data"]["text"] == "last"


async def test_a_body_of_ten_megabytes_is_refused_and_the_answer_arrives(tmp_path: Path) -> None:
    async with served(tmp_path) as (client, _):
        session_id = await new_session(client)
        path = f"/sessions/{session_id}/commands"

        async def dripping() -> AsyncIterator[bytes]:
            for _ in range(160):
                yield b"x" * 65_536

        whole = await client.post(path, content=b"x" * 10_485_760, headers=NDJSON)
        chunked = await client.post(path, content=dripping(), headers=NDJSON)
        single = await client.post(
            path, content=b"x" * 10_485_760, headers={"content-type": "application/json"}
        )
        for response in (whole, chunked, single):
            assert (response.status_code, response.json()["code"]) == (413, "too_large")
        assert response.json()["limit"] == 256 * 1024


async def raw(client: httpx2.AsyncClient, data: bytes) -> bytes:
    """All that the server answers to these bytes before it closes the connection."""
    with anyio.fail_after(20):
        async with await anyio.connect_tcp("127.0.0.1", client.base_url.port or 0) as connection:
            answer = b""
            try:
                await connection.send(data)
                while True:
                    answer += await connection.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return answer


POST = b"POST /api/v1/sessions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"


BROKEN_FRAMING = [
    POST + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    POST + b"content-length: -1\r\n\r\n{}",
    POST + b"content-length: 2,2\r\n\r\n{}",
    POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    POST + b"transfer-encoding: gzip, chunked, identity\r\n\r\n{}",
    b"GET / HTTP/1.1\rhost: x\r\r",
    b"GET / HTTP/1.1\r\nhost: x\r\nbad header: 1\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: x\r\nx: a\x00b\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
]
HOSTILE_PATHS = [
    b"/api/v1/sessions/../../../etc/passwd",
    b"/api/v1/sessions/%2e%2e%2f%2e%2e%2fetc%2fpasswd/state",
    b"/api/v1/sessions/sess_%00/state",
    b"/api/v1/sessions/%ff%fe",
    b"/api/v1/sessions/" + b"a" * 8_000,
    b"//api/v1/sessions",
    b"http://elsewhere/api/v1/nothing",
]
FLOODS = [
    b"GET / HTTP/1.1\r\n" + b"".join(b"x-%d: %b\r\n" % (number, b"y" * 100) for number in range(5_000)),
    b"GET / HTTP/1.1\r\nx: " + b"y" * 500_000,
    b"GET /" + b"y" * 500_000,
]


async def test_broken_framing_is_refused_and_the_connection_closed(tmp_path: Path) -> None:
    async with served(tmp_path) as (client, _):
        for request in BROKEN_FRAMING:
            answer = await raw(client, request)
            assert answer.split(b" ")[1] in (b"400", b"404"), (request, answer)
        assert (await client.get("/healthz")).status_code == 200


async def test_a_hostile_path_is_not_there(tmp_path: Path) -> None:
    async with served(tmp_path) as (client, _):
        for path in HOSTILE_PATHS:
            answer = await raw(client, b"GET " + path + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert answer.split(b" ")[1] in (b"400", b"404"), (path, answer)


async def test_a_flood_of_headers_is_cut_off(tmp_path: Path) -> None:
    async with served(tmp_path) as (client, _):
        for flood in FLOODS:
            answer = await raw(client, flood)
            # Where the server closes while we still write, its answer may be lost on the way.
            assert answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400")) or answer == b"", answer
        assert (await client.get("/healthz")).status_code == 200


async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async with served(tmp_path) as (client, _):
        get = b"GET /api/v1/%b HTTP/1.1\r\nhost: x\r\nx-request-id: %b\r\n%b\r\n"
        answer = await raw(
            client,
            get % (b"healthz", b"one", b"") + get % (b"nothing", b"two", b"")
            + get % (b"version", b"three", b"connection: close\r\n"),
        )  # fmt: skip
        ids = [line.split(b": ")[1] for line in answer.splitlines() if line.startswith(b"x-request-id")]
        assert ids == [b"one", b"two", b"three"]
