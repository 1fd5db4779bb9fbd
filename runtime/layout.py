"""Which objects a session has, and what they are called: the same names in every tier."""

import hashlib
import re

_SNAPSHOT = re.compile(r"/snapshot-(\d{12})\.json(\.zst)?$")


def session_folder(session_id: str) -> str:
    """The folder of a session's objects, spread over 256 so that none grows long."""
    return f"sessions/{hashlib.sha256(session_id.encode()).hexdigest()[:2]}/{session_id}"


def snapshot_name(session_id: str, seq: int) -> str:
    """Sorts by seq. In the archive its content is compressed, and `.zst` follows."""
    return f"{session_folder(session_id)}/snapshot-{seq:012d}.json"


def snapshot_seq(name: str) -> int | None:
    """The seq of a snapshot's name, compressed or not; None for the name of another kind of object."""
    match = _SNAPSHOT.search(name)
    return int(match[1]) if match else None


def manifest_name(session_id: str) -> str:
    """Written last at hand-off: where it stands, the session has been handed over."""
    return f"{session_folder(session_id)}/manifest.json"


def facts_name(session_id: str) -> str:
    """What may change after the seal."""
    return f"{session_folder(session_id)}/facts.json"


def snapshot_path(session_id: str, seq: int) -> str | None:
    """Where the public record says the snapshot lies, in the data folder; None for seq 0: there is none."""
    return snapshot_name(session_id, seq) if seq else None
