"""A session's state from what is stored: the newest valid snapshot, else the older one, then the journal above it."""

import hashlib

import structlog
from attrs import frozen

from ..actors.errors import Damaged
from ..actors.ports import Journal, Objects
from ..actors.session.codec import decode_events, decode_snapshot
from ..actors.session.core import apply
from ..actors.session.model import Limits, SessionState

log = structlog.get_logger("sojourn.recovery")

SNAPSHOTS_KEPT = 2
READ_BYTES = 4 * 1024 * 1024


@frozen(kw_only=True)
class Recovered:
    """A state, the epoch of its last record, and the seq of the snapshot it began with (0: none)."""

    state: SessionState
    epoch: int
    snapshot_seq: int


def session_folder(session_id: str) -> str:
    """The folder of a session's objects, spread over 256 so that none grows long."""
    return f"sessions/{hashlib.sha256(session_id.encode()).hexdigest()[:2]}/{session_id}"


def snapshot_name(session_id: str, seq: int) -> str:
    """Sorts by seq."""
    return f"{session_folder(session_id)}/snapshot-{seq:012d}.json"


def snapshot_path(session_id: str, seq: int) -> str | None:
    """Where the public record says the snapshot lies, in the data folder; None for seq 0: there is none."""
    return snapshot_name(session_id, seq) if seq else None


async def snapshot_names(objects: Objects, session_id: str) -> list[str]:
    """A session's snapshots, newest first."""
    names = [name async for name in objects.list(session_folder(session_id)) if "/snapshot-" in name]
    return sorted(names, reverse=True)


async def recover(session_id: str, *, journal: Journal, objects: Objects, limits: Limits) -> Recovered:
    """The state at the journal's head; seq 0 for a session that is not there.

    Raises:
        Damaged: no valid snapshot reaches the journal's first record, a record between is damaged, or the journal ends
            below the snapshot.
    """
    state, epoch, snapshot_seq = await _newest_snapshot(session_id, objects)
    head = journal.heads().get(session_id, 0)
    if state.seq > head:
        raise Damaged(
            f"the journal of {session_id} ends at event {head}, its snapshot stands at {state.seq}: the journal has lost its "
            "end, or is an older copy; put back the one that belongs to this folder"
        )
    while state.seq < head:
        records = await journal.read(session_id, state.seq, bytes_max=READ_BYTES)
        if not records:
            raise Damaged(f"events {state.seq + 1} to {head} of {session_id} are missing")
        for record in records:
            if record.first_seq > state.seq + 1:
                raise Damaged(f"events {state.seq + 1} to {record.first_seq - 1} of {session_id} are missing")
            for event in decode_events(record.payload, state.seq):
                apply(state, event, limits=limits)
            epoch = record.epoch
    return Recovered(state=state, epoch=epoch, snapshot_seq=snapshot_seq)


async def _newest_snapshot(session_id: str, objects: Objects) -> tuple[SessionState, int, int]:
    for name in await snapshot_names(objects, session_id):
        try:
            snapshot = decode_snapshot(await objects.get(name))
        except Damaged as error:
            log.error(
                "snapshot.damaged",
                session=session_id,
                name=name,
                error=str(error),
                remedy="the older one is used",
            )
            continue
        return snapshot.state, snapshot.epoch, snapshot.seq
    return SessionState(session_id=session_id), 0, 0
