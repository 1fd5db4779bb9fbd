"""Bodies within limits of bytes and time, on a virtual clock."""

import pytest
import trio
import trio.testing
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from sojourn.actors.errors import InvalidCommand, TooLarge
from sojourn.http.body import BODY_DEADLINE_S, read_batch, read_body
from sojourn.http.problems import SlowBody

pytestmark = pytest.mark.trio


class Sender:
    """A client that sends parts, each after `pause_s`; without an end when `ends` is false."""

    def __init__(self, *parts: bytes, pause_s: float = 0.0, ends: bool = True, goes: bool = False) -> None:
        self.parts = list(parts)
        self.pause_s = pause_s
        self.ends = ends
        self.goes = goes
        self.taken = 0

    async def receive(self) -> Message:
        await trio.sleep(self.pause_s)
        if not self.parts:
            if self.goes:
                return {"type": "http.disconnect"}
            await trio.sleep_forever()
        part = self.parts.pop(0)
        self.taken += len(part)
        return {"type": "http.request", "body": part, "more_body": bool(self.parts) or not self.ends}

    def request(self, **headers: str) -> Request:
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        return Request({"type": "http", "headers": raw}, self.receive)


async def test_a_body_in_many_parts_is_put_together() -> None:
    assert await read_body(Sender(b"a", b"", b"bc").request(), "a body", 3) == b"abc"


async def test_a_body_over_its_limit_is_refused_however_it_comes() -> None:
    for sender in (Sender(b"abcd"), Sender(b"ab", b"cd"), Sender(b"ab", b"cd", b"ef", b"gh")):
        with pytest.raises(TooLarge) as caught:
            await read_body(sender.request(), "a body", 3)
        assert caught.value.limit == 3
        assert sender.parts == []


async def test_a_body_without_an_end_is_dropped_up_to_a_bound() -> None:
    sender = Sender(*[b"x" * 1024 * 1024] * 100)
    with pytest.raises(TooLarge):
        await read_body(sender.request(), "a body", 1024)
    assert sender.taken <= 18 * 1024 * 1024


async def test_a_client_that_asks_first_is_refused_before_it_sends() -> None:
    sender = Sender(b"x" * 10)
    with pytest.raises(TooLarge):
        await read_body(sender.request(content_length="10", expect="100-continue"), "a body", 3)
    assert sender.taken == 0


@pytest.mark.parametrize(
    "sender",
    [
        lambda: Sender(b"a", ends=False),
        lambda: Sender(*[b"a"] * 1_000, pause_s=1.0),
        lambda: Sender(*[b"abcd"] * 1_000, pause_s=1.0),
        lambda: Sender(),
    ],
    ids=["stops", "drips", "drips beyond the limit", "says nothing"],
)
async def test_a_body_that_does_not_come_is_given_up_at_the_deadline(
    autojump_clock: trio.testing.MockClock, sender: type[Sender]
) -> None:
    began = trio.current_time()
    with pytest.raises(SlowBody):
        await read_body(sender().request(), "a body", 1_000)
    assert trio.current_time() - began == pytest.approx(BODY_DEADLINE_S)


async def test_a_client_that_goes_away_ends_the_reading() -> None:
    with pytest.raises(ClientDisconnect):
        await read_body(Sender(b"a", ends=False, goes=True).request(), "a body", 3)


async def test_a_batch_of_nothing_is_refused() -> None:
    for body in (b"", b"\n", b"  \n"):
        with pytest.raises(InvalidCommand, match="empty"):
            read_batch(body)


async def test_every_line_is_answered_by_its_id_or_else_by_its_number() -> None:
    batch = read_batch(
        b'{"type":"session.pause","command_id":"c"}\n{"n":2,"source":"s"}\n{"n":"2","source":"s"}\n[1]\n'
        b'{"command_id":7}\n{"command_id":"' + b"x" * 129 + b'"}'
    )
    assert batch.identities == [
        {"command_id": "c"}, {"n": 2, "source": "s"}, {"line": 3}, {"line": 4}, {"line": 5}, {"line": 6},
    ]  # fmt: skip
