"""`show` and `tail` of a live session in a mirror: from any machine that reaches the Redis, without its server or folder."""

import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
from attrs import define

from ..actors.errors import CallerError
from ..actors.session.codec import public_state
from ..actors.session.commands import ENDING_EVENTS
from ..actors.session.documents import state_of
from ..actors.session.model import SessionState
from ..actors.session.record import complete_record, public_record
from ..actors.session.wire import SESSION_ID
from ..runtime.mirror_reader import LiveEvent, LiveGap, LiveRewound, LiveSession, MirrorReader, MovedAway
from ..runtime.stores.mirror_keys import check_namespace
from .look import LOST
from .render import event_lines
from .screen import Screen

_ELSEWHERE = "the folder or server it belongs to has them: `sojourn tail {} --data DIR`, or --server URL"


class NotInMirror(CallerError):
    """The mirror does not hold the session."""

    code = "not_in_mirror"


async def read_session(
    url: str, namespace: str, session_id: str
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """(public record, state, where they were read), as JSON has them.

    Raises:
        NotInMirror: it is not there; what is known of it is said.
        UnusableMirror, StoreUnavailable: as of `MirrorReader.open`.
    """
    async with _opened(url, namespace) as reader:
        live = await _live(reader, session_id, namespace)
        state = _state(live, session_id)
        record: dict[str, Any] = msgspec.to_builtins(await _record(reader, live, state))
        document: dict[str, Any] = msgspec.json.decode(public_state(state))
        return record, document, f"{reader.description}, namespace {namespace}"


async def tail_session(
    screen: Screen,
    url: str,
    namespace: str,
    session_id: str,
    *,
    lines: int,
    follow: bool,
    forever: bool,
    json: bool,
) -> int:
    """`tail`, see there. Raises as `read_session`."""
    async with _opened(url, namespace) as reader:
        live = await _live(reader, session_id, namespace)
        record = await _record(reader, live, _state(live, session_id))
        seq = await _print_held(screen, reader, session_id, lines, json)
        if not follow or (record["ended_at"] is not None and not forever):
            return 0
        if record["lost"]:
            print(LOST, file=sys.stderr)
        async with aclosing(reader.follow(session_id, seq, epoch=live.head.epoch)) as following:
            async for news in following:
                if not isinstance(news, LiveEvent):
                    screen.flush()
                    print(f"sojourn: {_said(news, session_id)}", file=sys.stderr, flush=True)
                    continue
                event_type = _type(news)
                for line in event_lines(screen, event_type, news.event, json):
                    screen.line(line)
                screen.flush()
                if screen.is_gone or (event_type in ENDING_EVENTS and not forever):
                    return 0
    return 0


async def _print_held(screen: Screen, reader: MirrorReader, session_id: str, count: int, json: bool) -> int:
    """The last `count` lines (0: all) of what the mirror holds, and on stderr what it does not, where that would be among
    them; the seq of the last event."""
    kept: deque[str] = deque(maxlen=count or None)
    missing: list[LiveGap] = []
    seq = 0
    async with aclosing(reader.held(session_id)) as held:
        async for news in held:
            if isinstance(news, LiveGap):
                missing.append(news)
                seq = news.last_seq
            else:
                kept.extend(event_lines(screen, _type(news), news.event, json))
                seq = news.seq
    if not count or len(kept) < count:
        for gap in missing:
            print(f"sojourn: {_said(gap, session_id)}", file=sys.stderr, flush=True)
    for line in kept:
        screen.line(line)
    screen.flush()
    return seq


@asynccontextmanager
async def _opened(url: str, namespace: str) -> AsyncIterator[MirrorReader]:
    try:
        check_namespace(namespace)
    except ValueError as error:
        raise CallerError(f"--namespace: {error}") from error
    reader = await MirrorReader.open(url, namespace=namespace)
    try:
        yield reader
    finally:
        await reader.close()


async def _live(reader: MirrorReader, session_id: str, namespace: str) -> LiveSession:
    if not SESSION_ID.match(session_id):
        raise CallerError(
            f"{session_id!r:.200} is no whole session id, and a mirror has no list to find it in; give all of it, sess_ and 32 "
            "digits"
        )
    found = await reader.read(session_id)
    if isinstance(found, MovedAway):
        raise NotInMirror(_said(found, session_id))
    if found is None:
        raise NotInMirror(
            f"{reader.description} knows no session {session_id} in the namespace {namespace}: it was handed over more than "
            "an hour ago, never was there, or the server has lost it and has it again once its owner has sent it; look "
            "with --data or --server"
        )
    return found


def _state(live: LiveSession, session_id: str) -> SessionState:
    return state_of(session_id, live.head.seq, live.documents)


async def _record(reader: MirrorReader, live: LiveSession, state: SessionState) -> dict[str, Any]:
    """Signs of life are not in the mirror: a session counts as lost where nobody owns it."""
    return complete_record(
        public_record(state, epoch=live.head.epoch),
        now=datetime.now(UTC),
        last_sign_at=None,
        owner_alive=await reader.has_owner(),
    )


def _said(news: LiveGap | LiveRewound | MovedAway, session_id: str) -> str:
    match news:
        case LiveGap(first_seq=first, last_seq=last):
            which = f"event {first} is" if first == last else f"events {first:,} to {last:,} are"
            return (
                f"{which} not in the mirror, which keeps those since the last snapshot; "
                f"{_ELSEWHERE.format(session_id)}"
            )
        case LiveRewound(epoch=epoch, seq=seq):
            return (
                f"the session was recovered without its events above {seq:,} (epoch {epoch}): those did not happen, and what "
                "comes now takes their place"
            )
        case MovedAway(tier=tier, seq=seq):
            return (
                f"session {session_id} was handed over, and is live no more: its tier is {tier}, its last event here was "
                f"{seq:,}; look at it with --data DIR or --server URL"
            )


@define
class _Typed:
    type: str


_decode_type = msgspec.json.Decoder(_Typed).decode


def _type(event: LiveEvent) -> str:
    return _decode_type(event.event).type
