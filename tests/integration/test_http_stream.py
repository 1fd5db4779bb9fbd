"""Live streams over a real socket: snapshot, resume, rewound, the end, slow readers and shutdown."""

import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx2

from sojourn.actors.kernel.mailbox import CONTROL_MESSAGES_MAX
from tests.support.facade import (
    ON_ASYNCIO,
    UNKNOWN_ID,
    Frame,
    batch,
    command,
    frames,
    log_line,
    new_session,
    served,
    until,
)

pytestmark = ON_ASYNCIO


@asynccontextmanager
async def watching(
    client: httpx2.AsyncClient, session_id: str, query: str = "", last_event_id: str = ""
) -> AsyncIterator[AsyncIterator[Frame]]:
    headers = {"last-event-id": last_event_id} if last_event_id else {}
    async with client.stream("GET", f"/sessions/{session_id}/stream{query}", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream"
        yield frames(response.aiter_bytes())


async def taken(stream: AsyncIterator[Frame], count: int) -> list[Frame]:
    with anyio.fail_after(20):
        return [await anext(stream) for _ in range(count)]


async def all_of(
    client: httpx2.AsyncClient, session_id: str, query: str, last_event_id: str = ""
) -> list[Frame]:
    """The frames of a stream that must end by itself."""
    with anyio.fail_after(20):
        async with watching(client, session_id, query, last_event_id) as stream:
            return [frame async for frame in stream]


async def test_a_stream_begins_with_a_snapshot_and_goes_on_with_what_happens(tmp_path: Path) -> None:
    async with served(tmp_path) as (client, _):
        session_id = await new_session(client, title="nightly")
        async with watching(client, session_id) as stream:
            (snapshot,) = await taken(stream, 1)
            assert (snapshot.type, snapshot.seq) == ("snapshot", 2)
            assert snapshot.data["record"]["title"] == "nightly"
            assert snapshot.data["state"]["seq"] == 2
            await command(client, session_id, **log_line("one"))
            await batch(client, session_id, [log_line("two"), log_line("three")])
            live = await taken(stream, 3)
        assert [frame.seq for frame in live] == [3, 4, 5]
        assert [frame.data["data"]["text"] for frame in live] == ["one", "two", "three"]
        assert {frame.type for frame in live} == {"log.appended"}


async def test_what_is_streamed_is_what_is_stored(tmp_path: Path) -> None:
    async with served(tmp_path) as (client, _):
        session_id = await new_session(client)
        await batch(client, session_id, [log_line(f"line\n{number}\r\u2028") for number in range(50)])
        async with watching(client, session_id, "?after=0") as stream:
            streamed = [frame.data for frame in await taken(stream, 52)]
        assert streamed == (await client.get(f"/sessions/{session_id}/events")).json()["items"]


async def test_a_stream_that_was_cut_resumes_without_a_gap_or_a_double(tmp_path: Path) -> None:
    async with served(tmp_path) as (client, app):
        session_id = await new_session(client)
        seen: list[int] = []
        last_id = "1.0"
        async with anyio.create_task_group() as tasks:

            async def write() -> None:
                for first in range(0, 300, 3):
                    await batch(client, session_id, [log_line(str(first + more)) for more in range(3)])

            tasks.start_soon(write)
            cut_after = 1
            while len(seen) < 302:
                async with watching(client, session_id, last_event_id=last_id) as stream:
                    for frame in await taken(stream, min(cut_after, 302 - len(seen))):
                        assert frame.type != "snapshot"
                        seen.append(frame.seq)
                        assert frame.id is not None
                        last_id = f"{frame.id[0]}.{frame.id[1]}"
                cut_after += 13
        assert seen == list(range(1, 303))
        await until(lambda: len(app.streams) == 0)


async def test_a_resumed_stream_goes_by_the_last_event_id_and_not_by_the_repeated_url(tmp_path: Path) -> None:
    async with served(tmp_path) as (client, _):
        session_id = await new_session(client)
        await batch(client, session_id, [log_line(str(number)) for number in range(4)])
        async with watching(client, session_id, "?after=0", last_event_id="1.4") as stream:
            assert [frame.seq for frame in await taken(stream, 2)] == [5, 6]


async def test_an_id_beyond_the_history_is_told_that_it_was_rewound(tmp_path: Path) -> None:
    async with served(tmp_path) as (client, _):
        session_id = await new_session(client)
        for query, last_event_id in (("", "1.50"), ("?after=50", "")):
            async with watching(client, session_id, query, last_event_id) as stream:
                (rewound,) = await taken(stream, 1)
                assert (rewound.type, rewound.data) == ("rewound", {"from": 50, "to": 2})
                assert rewound.id == (1, 2)
        async with watching(client, session_id, last_event_id="1.50") as stream:
            await taken(stream, 1)
            seq = (await command(client, session_id, **log_line("next")))["seq"]
            assert [frame.seq for frame in await taken(stream, 1)] == [seq]


async def test_an_id_of_an_earlier_process_resumes_in_the_next_one(tmp_path: Path) -> None:
    async with served(tmp_path) as (client, _):
        session_id = await new_session(client)
        await batch(client, session_id, [log_line(str(number)) for number in range(3)])
    async with served(tmp_path) as (client, _):
        await command(client, session_id, **log_line("in epoch 2"))
        async with watching(client, session_id, last_event_id="1.4") as stream:
            assert [frame.id for frame in await taken(stream, 2)] == [(1, 5), (2, 6)]


async def test_an_id_whose_event_was_written_anew_by_a_later_process_is_rewound_to_before_it(
    tmp_path: Path,
) -> None:
    """As after a disk that lost its last writes: the reader saw 1.6, but 6 was written again in epoch 2."""
    async with served(tmp_path) as (client, _):
        session_id = await new_session(client)
        await batch(client, session_id, [log_line(str(number)) for number in range(3)])
    async with served(tmp_path) as (client, _):
        await batch(client, session_id, [log_line("6 anew"), log_line("7 anew")])
        for last_event_id in ("1.6", "1.60"):
            async with watching(client, session_id, last_event_id=last_event_id) as stream:
                rewound, *following = await taken(stream, 3)
                assert (rewound.type, rewound.id, rewound.data["to"]) == ("rewound", (1, 5), 5)
                assert [frame.id for frame in following] == [(2, 6), (2, 7)]


async def test_an_id_of_an_epoch_that_is_yet_to_come_starts_from_the_beginning(tmp_path: Path) -> None:
    """As after a data folder was put back from a copy: where the two histories part cannot be told."""
    async with served(tmp_path) as (client, _):
        session_id = await new_session(client)
        async with watching(client, session_id, last_event_id="9.2") as stream:
            rewound, first = await taken(stream, 2)
            assert (rewound.type, rewound.data, first.seq) == ("rewound", {"from": 2, "to": 0}, 1)


async def test_until_end_closes_after_the_event_that_ends_the_session(tmp_path: Path) -> None:
    async with served(tmp_path) as (client, _):
        session_id = await new_session(client)
        collected: list[Frame] = []
        async with anyio.create_task_group() as tasks:

            async def collect() -> None:
                async with watching(client, session_id, "?until=end") as stream:
                    async for frame in stream:
                        collected.append(frame)

            tasks.start_soon(collect)
            await until(lambda: collected)
            await command(client, session_id, type="session.complete", outcome="passed")
        assert [frame.type for frame in collected] == ["snapshot", "session.completed"]


async def test_until_end_of_an_ended_session_is_what_remains_up_to_its_end(tmp_path: Path) -> None:
    async with served(tmp_path) as (client, _):
        session_id = await new_session(client)
        await command(client, session_id, type="session.complete", outcome="passed")
        await command(client, session_id, **log_line("late"))
        assert [frame.type for frame in await all_of(client, session_id, "?until=end&after=1")] == [
            "session.started",
            "session.completed",
        ]
        (snapshot,) = (await all_of(client, session_id, "?until=end"))[:1]
        assert snapshot.type == "snapshot"
        assert [frame.seq for frame in await all_of(client, session_id, "?until=end", "1.3")] == [4]


async def test_without_until_a_stream_stays_open_for_late_logs(tmp_path: Path) -> None:
    async with served(tmp_path) as (client, _):
        session_id = await new_session(client)
        async with watching(client, session_id) as stream:
            await taken(stream, 1)
            await command(client, session_id, type="session.fail")
            await command(client, session_id, **log_line("late"))
            assert [frame.type for frame in await taken(stream, 2)] == ["session.failed", "log.appended"]


async def test_a_stream_may_not_be_cached_or_held_back_by_a_proxy(tmp_path: Path) -> None:
    async with served(tmp_path) as (client, _):
        session_id = await new_session(client)
        head = await client.head(f"/sessions/{session_id}/stream")
        assert head.status_code == 200
        assert head.headers["cache-control"] == "no-store"
        assert head.headers["x-accel-buffering"] == "no"
        assert head.headers["x-request-id"]


async def test_a_place_that_cannot_be_read_is_refused_before_the_stream_begins(tmp_path: Path) -> None:
    async with served(tmp_path) as (client, _):
        stream = f"/sessions/{await new_session(client)}/stream"
        for query in ("?after=x", "?after=-1", "?until=noon", "?since=1"):
            response = await client.get(stream + query)
            assert (response.status_code, response.headers["content-type"]) == (
                400,
                "application/problem+json",
            )
        for last_event_id in ("7", "a.b", "1.-1", "1.2.3", "1." + "9" * 17):
            response = await client.get(stream, headers={"last-event-id": last_event_id})
            assert response.json()["errors"][0]["header"] == "Last-Event-ID"
        assert (await client.get(f"/sessions/{UNKNOWN_ID}/stream")).status_code == 404


async def test_a_reader_that_does_not_read_slows_nobody_and_costs_bounded_memory(tmp_path: Path) -> None:
    async with served(tmp_path) as (client, app):
        session_id = await new_session(client)
        with socket.create_connection(("127.0.0.1", client.base_url.port or 0)) as idle:
            request = f"GET /api/v1/sessions/{session_id}/stream?after=0 HTTP/1.1\r\nhost: x\r\n\r\n"
            idle.sendall(request.encode())
            await until(lambda: len(app.streams) == 1)
            async with watching(client, session_id) as stream:
                await taken(stream, 1)
                for _ in range(24):  # 24 MB: more than both kernels' socket buffers hold
                    await batch(client, session_id, [log_line("x" * 60_000) for _ in range(16)])
                assert [frame.seq for frame in await taken(stream, 384)] == list(range(3, 387))
            (outbox,) = [box for box in app.streams if box.waiting_bytes]
            assert outbox.waiting_bytes < 256 * 1024
        await until(lambda: len(app.streams) == 0)


async def test_more_viewers_at_once_than_a_mailbox_holds_are_all_served_and_see_the_same(
    tmp_path: Path,
) -> None:
    async with served(tmp_path) as (client, app):
        session_id = await new_session(client)
        viewers, ids = 3 * CONTROL_MESSAGES_MAX // 2, range(3, 8)
        seen: list[list[bytes]] = []

        async def view() -> None:
            request = f"GET /api/v1/sessions/{session_id}/stream HTTP/1.1\r\nhost: x\r\n\r\n"
            async with await anyio.connect_tcp("127.0.0.1", client.base_url.port or 0) as socket:
                await socket.send(request.encode())
                body = b""
                while b"id: 1.%d\n" % ids[-1] not in body:
                    body += await socket.receive()
            seen.append(re.findall(rb"id: 1\.(\d+)\n", body))

        async with anyio.create_task_group() as tasks:
            for _ in range(viewers):
                tasks.start_soon(view)
            await until(lambda: len(app.streams) == viewers)
            for _ in ids:
                await command(client, session_id, type="log.append", stream="stdout", text="x")
        assert seen == [[b"%d" % seq for seq in (2, *ids)]] * viewers


async def test_a_reader_that_goes_away_is_noticed(tmp_path: Path) -> None:
    async with served(tmp_path) as (client, app):
        session_id = await new_session(client)
        async with watching(client, session_id) as stream:
            await taken(stream, 1)
            assert len(app.streams) == 1
            assert app.runtime is not None
            assert app.runtime.statistics().live.subscribers == 1
        await until(lambda: len(app.streams) == 0)
        assert app.runtime.statistics().live.subscribers == 0


async def test_streams_end_in_order_when_the_server_stops(tmp_path: Path) -> None:
    ended = anyio.Event()

    async def watch(client: httpx2.AsyncClient, session_id: str, begun: anyio.Event) -> None:
        async with watching(client, session_id) as stream:
            await taken(stream, 1)
            begun.set()
            assert [frame async for frame in stream] == []
        ended.set()

    async with anyio.create_task_group() as tasks:
        async with served(tmp_path) as (client, app):
            session_id = await new_session(client)
            watcher = httpx2.AsyncClient(base_url=client.base_url, trust_env=False)
            begun = anyio.Event()
            tasks.start_soon(watch, watcher, session_id, begun)
            await begun.wait()
            app.streams.close()
            with anyio.fail_after(10):
                await ended.wait()
        await watcher.aclose()


async def test_events_that_are_ready_together_leave_in_few_chunks(tmp_path: Path) -> None:
    async with served(tmp_path) as (client, _):
        session_id = await new_session(client)
        await batch(client, session_id, [log_line("x") for _ in range(1_000)])
        await command(client, session_id, type="session.complete", outcome="passed")
        chunks = 0
        async with client.stream("GET", f"/sessions/{session_id}/stream?after=0&until=end") as response:
            body = b""
            async for chunk in response.aiter_raw():
                chunks += 1
                body += chunk
        ids = [json.loads(line[6:])["seq"] for line in body.splitlines() if line.startswith(b"data: ")]
        assert ids == list(range(1, 1_004))
        assert chunks < 100
