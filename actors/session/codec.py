"""Events and states as canonical JSON (sorted keys, no spaces, UTF-8), and back.

This reads only what Sojourn itself wrote, so it may be fast: msgspec takes the attrs classes as they are. Input from
outside goes through `wire.py`.
"""

import hashlib
import heapq
import zlib
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import islice
from typing import Any

import msgspec
from attrs import define, fields_dict, frozen

from ..errors import Damaged
from .commands import KIND_BY_EVENT, Body, Cause, Command, Event, SourceCause
from .model import SessionState

STATE_FORMAT = 3  # 1: the checksum was of the state alone; 2: there were no timers
DOCUMENTS_A_PIECE = 1_000

# "deterministic" sorts the keys of dicts; those of classes come in the order of their fields, which is alphabetical.
_encoder = msgspec.json.Encoder(order="deterministic")
_encode = _encoder.encode


# One event as a line, without its newline.
encode_event: Callable[[Event], bytes] = _encode
# A record's payload: one line an event, each ending with a newline. The encoder's own method: a function around it would
# cost a third of it.
encode_events: Callable[[Iterable[Event]], bytes] = _encoder.encode_lines


def command_digest(command: Command) -> str:
    """Tells one body from another under the same command id. It catches a mistake, not malice: a caller who forges a
    collision only keeps its own command from taking effect."""
    return f"{zlib.crc32(_encode(command.body), zlib.crc32(command.type.encode())):08x}"


@define
class _Line:
    at: datetime
    cause: dict[str, Any] | None
    data: msgspec.Raw
    seq: int
    type: str


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_body: dict[str, Any] = {
    event: msgspec.json.Decoder(kind.body).decode for event, kind in KIND_BY_EVENT.items()
}


def decode_event(line: bytes | memoryview) -> Event:
    """The event of one line. Raises Damaged for what this version did not write, and names the cause."""
    try:
        raw = _decode_line(line)
        decode_body = _decode_body.get(raw.type)
        if decode_body is None:
            raise Damaged(
                f"unknown event type {raw.type!r}: written by a newer version of Sojourn; upgrade this one"
            )
        body: Body = decode_body(raw.data)
        cause = raw.cause
        if cause is None:
            return Event(raw.at, None, body, raw.seq, raw.type)
        kind = SourceCause if "source" in cause else Cause
        return Event(raw.at, kind(**cause), body, raw.seq, raw.type)
    except (msgspec.MsgspecError, TypeError, UnicodeDecodeError) as error:
        raise Damaged(f"a stored event cannot be read: {error}") from error


def decode_events(payload: bytes, after_seq: int = 0) -> Iterable[Event]:
    """The events of a record's payload above `after_seq`, in order."""
    for line in payload.splitlines():
        event = decode_event(line)
        if event.seq > after_seq:
            yield event


def public_state(state: SessionState) -> bytes:
    """What `GET .../state` answers: the state without what only deduplication needs."""
    return _encode(
        {
            "active_clock": state.active_clock,
            "counters": state.counters,
            "header": state.header,
            "losses": state.losses,
            "progress": state.progress,
            "resources": state.resources,
            "results": state.results,
            "seq": state.seq,
            "timers": state.timers,
            "updated_at": state.updated_at,
        }
    )


@frozen(kw_only=True)
class _Envelope:
    checksum: str
    epoch: int
    format: int
    seq: int
    session_id: str
    state: msgspec.Raw


@frozen(kw_only=True)
class Snapshot:
    """A whole state at a seq, and the epoch of the process that wrote it."""

    epoch: int
    seq: int
    session_id: str
    state: SessionState


_STATE_FIELDS = tuple(sorted(fields_dict(SessionState)))
# Left out while there are none: what stands there then, and its format, is what a version without timers writes and reads.
_TIMER_FIELDS = frozenset({"active_clock", "timers"})
_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_state = msgspec.json.Decoder(SessionState).decode


def encode_snapshot(state: SessionState, epoch: int) -> bytes:
    """A JSON document that a person can open: format, seq, epoch and SHA-256 around the plain state.

    Meant for a thread beside the event loop: no step of it holds the interpreter for more than about 2 ms (100,000
    documents in one call would hold it for 160), but for the joining of the pieces at the end, a copy in memory.
    """
    version = STATE_FORMAT if state.timers else 2
    digest = hashlib.sha256(_told(version, epoch))
    pieces = [b""]
    for piece in _state_pieces(state):
        digest.update(piece)
        pieces.append(piece)
    empty = _Envelope(
        checksum=digest.hexdigest(),
        epoch=epoch,
        format=version,
        seq=state.seq,
        session_id=state.session_id,
        state=msgspec.Raw(b"0"),
    )
    pieces[0] = _encode(empty)[:-2]  # the state is the last field: it takes the place of the 0
    pieces.append(b"}")
    return b"".join(pieces)


def _told(version: int, epoch: int) -> bytes:
    """What the checksum covers beside the state, which repeats the rest."""
    return b"%d %d\n" % (version, epoch) if version > 1 else b""


def _state_pieces(state: SessionState) -> Iterator[bytes]:
    """The state as canonical JSON, map by map and a thousand documents at a time."""
    before = b"{"
    for name in _STATE_FIELDS:
        if name in _TIMER_FIELDS and not state.timers:
            continue
        yield b'%s"%s":' % (before, name.encode())
        before = b","
        value = getattr(state, name)
        if isinstance(value, dict) and len(value) > DOCUMENTS_A_PIECE:
            yield from _map_pieces(value)
        else:
            yield _encode(value)
    yield b"}"


def _map_pieces(documents: dict[str, Any]) -> Iterator[bytes]:
    names = list(documents)
    # Sorted in blocks and merged: one sort of 100,000 names would take 60 ms.
    blocks = [
        sorted(names[start : start + 4 * DOCUMENTS_A_PIECE])
        for start in range(0, len(names), 4 * DOCUMENTS_A_PIECE)
    ]
    before = b"{"
    in_order = heapq.merge(*blocks)
    while some := list(islice(in_order, DOCUMENTS_A_PIECE)):
        yield before + _encode({name: documents[name] for name in some})[1:-1]
        before = b","
    yield b"}"


def decode_snapshot(data: bytes) -> Snapshot:
    """Raises Damaged where the checksum does not hold, the document is cut short, or a newer version wrote it."""
    try:
        envelope = _decode_envelope(data)
        if envelope.format > STATE_FORMAT:
            raise Damaged(
                f"snapshot format {envelope.format} is newer than this version's {STATE_FORMAT}; upgrade Sojourn"
            )
        raw = bytes(envelope.state)
        digest = hashlib.sha256(_told(envelope.format, envelope.epoch))
        digest.update(raw)
        if digest.hexdigest() != envelope.checksum:
            raise Damaged(
                f"the snapshot of {envelope.session_id} at seq {envelope.seq} does not carry its checksum"
            )
        state: SessionState = _decode_state(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Damaged(f"a snapshot cannot be read: {error}") from error
    if (state.seq, state.session_id) != (envelope.seq, envelope.session_id):
        raise Damaged(f"the snapshot of {envelope.session_id} says seq {envelope.seq} and holds {state.seq}")
    # Stored sorted by id; eviction needs the order in which they came.
    state.commands = dict(sorted(state.commands.items(), key=lambda item: item[1].first_seq))
    return Snapshot(epoch=envelope.epoch, seq=state.seq, session_id=state.session_id, state=state)
