"""A session's state as named documents, and back: what stands in the mirror, each the canonical JSON of one part.

    header, progress, resources, losses      where the session has them
    meta                                     counters, size and time of the last event: every event replaces it
    active_clock                             while there are timers that count running time
    results/CASE, sources/NAME, commands/ID, timers/KEY  one of each map's

An event touches a constant number of them, whatever the size of the state; the end of a session also all of its timers,
which are few.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from typing import Any

import msgspec
from attrs import frozen

from ..errors import Damaged
from .commands import Cause, Event, SourceCause
from .model import (
    ActiveClock,
    DedupEntry,
    Header,
    Limits,
    Loss,
    Progress,
    Resources,
    Result,
    SessionState,
    SourceMark,
    Timer,
)

_EVICTED_MAX = 3  # commands that one event may push out of the dedup window

_encode = msgspec.json.Encoder(order="deterministic").encode


@frozen(kw_only=True)
class Meta:
    """What every event replaces."""

    counters: dict[str, int]
    size_bytes: int
    updated_at: datetime | None


# What stands for itself, and what each entry of a map is.
_SINGLE: dict[str, Any] = {
    "active_clock": msgspec.json.Decoder(ActiveClock).decode,
    "header": msgspec.json.Decoder(Header).decode,
    "losses": msgspec.json.Decoder(list[Loss]).decode,
    "progress": msgspec.json.Decoder(Progress).decode,
    "resources": msgspec.json.Decoder(Resources).decode,
}
_MAPS: dict[str, Any] = {
    "commands": msgspec.json.Decoder(DedupEntry).decode,
    "results": msgspec.json.Decoder(Result).decode,
    "sources": msgspec.json.Decoder(SourceMark).decode,
    "timers": msgspec.json.Decoder(Timer).decode,
}
_decode_meta = msgspec.json.Decoder(Meta).decode

# The document that an event replaces beside `meta` and its cause's.
_TOUCHED = {
    "history.lost": "losses",
    "log.appended": "meta",
    "progress.reported": "progress",
    "resource.sampled": "resources",
}
_OF_TIMERS = frozenset({"timer.set", "timer.cancelled", "timer.fired"})


def apply_touching(
    state: SessionState,
    event: Event,
    limits: Limits,
    touched: set[str],
    apply: Callable[[SessionState, Event, Limits], None],
) -> None:
    """`core.apply`, and the names of the documents that it replaced or removed are added to `touched`."""
    cause = event.cause
    kind = event.type
    timers = state.timers
    if type(cause) is SourceCause:
        apply(state, event, limits)
        touched.add(f"sources/{cause.source}")
    elif type(cause) is Cause:
        window = state.commands
        oldest = tuple(islice(window, _EVICTED_MAX))
        apply(state, event, limits)
        touched.add(f"commands/{cause.command_id}")
        touched.update([f"commands/{command_id}" for command_id in oldest if command_id not in window])
    else:
        apply(state, event, limits)
    if kind == "result.recorded":
        touched.add(f"results/{event.data.case_id}")  # type: ignore[union-attr]
    elif kind in _OF_TIMERS:
        touched.update(("active_clock", f"timers/{event.data.key}"))  # type: ignore[union-attr]
    else:
        touched.add(_TOUCHED.get(kind, "header"))
        if timers and kind.startswith("session."):
            touched.add("active_clock")
            if state.timers is not timers:  # it has ended
                touched.update([f"timers/{key}" for key in timers])
    touched.add("meta")


def documents_named(state: SessionState, names: Iterable[str]) -> dict[str, bytes | None]:
    """These documents as they are now; None for one that is not there, or not any more."""
    found: dict[str, bytes | None] = {}
    for name in names:  # once a slot, so it calls nothing but the encoder
        if name == "meta":
            found[name] = _encode(
                {"counters": state.counters, "size_bytes": state.size_bytes, "updated_at": state.updated_at}
            )
            continue
        kind, _, key = name.partition("/")
        value = getattr(state, kind)
        if key:
            value = value.get(key)
        found[name] = _encode(value) if value else None
    return found


def _meta(state: SessionState) -> bytes:
    return _encode(
        {"counters": state.counters, "size_bytes": state.size_bytes, "updated_at": state.updated_at}
    )


def all_documents(state: SessionState) -> Iterator[tuple[str, bytes]]:
    """Every document of a state by name."""
    yield "meta", _meta(state)
    for name in _SINGLE:
        value = getattr(state, name)
        if value:
            yield name, _encode(value)
    for kind in _MAPS:
        for key, value in getattr(state, kind).items():
            yield f"{kind}/{key}", _encode(value)


def state_of(session_id: str, seq: int, documents: Mapping[str, bytes]) -> SessionState:
    """The state whose documents these are.

    Raises:
        Damaged: `meta` or `header` is missing, one cannot be read, or its name is not known to this version.
    """
    state = SessionState(session_id=session_id, seq=seq)
    if "meta" not in documents or "header" not in documents:
        raise Damaged(f"the mirror of {session_id} lacks its documents meta or header")
    for name, document in documents.items():
        kind, _, key = name.partition("/")
        try:
            if name == "meta":
                meta = _decode_meta(document)
                state.counters, state.size_bytes = meta.counters, meta.size_bytes
                state.updated_at = meta.updated_at
            elif key and kind in _MAPS:
                getattr(state, kind)[key] = _MAPS[kind](document)
            elif name in _SINGLE:
                setattr(state, name, _SINGLE[name](document))
            else:
                raise Damaged(
                    f"the mirror of {session_id} has a document {name!r:.100}, which this version does not know; upgrade it"
                )
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Damaged(f"document {name!r:.100} of {session_id} cannot be read: {error}") from error
    # Eviction needs the order in which they came.
    state.commands = dict(sorted(state.commands.items(), key=lambda item: item[1].first_seq))
    return state
