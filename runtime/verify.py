"""Reads everything that is stored and checks it against its checksums: what is flawed is named, and nothing is changed."""

from collections.abc import AsyncIterator
from itertools import groupby

from attrs import frozen

from ..actors.errors import Damaged, ObjectMissing
from ..actors.ports import Objects
from ..actors.session.codec import decode_snapshot
from .facts import decode_facts
from .layout import session_folder, snapshot_seq
from .manifest import Manifest, decode_manifest, sha256_of
from .recovery import SNAPSHOT_BYTES_MAX
from .segments import decode_segment, parse_name, unpack


@frozen(kw_only=True)
class Flaw:
    """What is wrong with one stored thing. `session_id` is None where it belongs to no session in particular."""

    name: str
    session_id: str | None
    detail: str


async def verify_objects(objects: Objects, prefix: str = "sessions") -> AsyncIterator[Flaw | None]:
    """Every object below `prefix`: a flaw, or None for one that is whole, in the order of their names. One object is held
    in memory at a time.

    Raises:
        StoreError: the store does not answer.
    """
    names = [name async for name in objects.list(prefix)]
    for folder, members in groupby(names, key=lambda name: name.rpartition("/")[0]):
        session_id = folder.rpartition("/")[2]
        entries: dict[str, tuple[str, int]] = {}
        manifest: Manifest | None = None
        for name in members:
            try:
                data = await objects.get(name)
                entries[name] = (sha256_of(data), len(data))
                checked = _check(name, session_id, data)
                manifest = checked or manifest
            except (Damaged, ObjectMissing) as error:
                yield Flaw(name=name, session_id=session_id, detail=str(error))
            else:
                yield None
        if manifest is not None:
            for entry in manifest.objects:
                if entry.name not in entries:
                    yield Flaw(
                        name=entry.name,
                        session_id=session_id,
                        detail="its manifest names it; it is not there",
                    )
                elif entries[entry.name] != (entry.sha256, entry.bytes):
                    yield Flaw(
                        name=entry.name, session_id=session_id, detail="it is not what its manifest says"
                    )


def _check(name: str, session_id: str, data: bytes) -> Manifest | None:
    """The manifest, where the object is one. Raises Damaged."""
    if not name.startswith(f"{session_folder(session_id)}/"):
        raise Damaged(f"{name} lies in a folder that is not its session's")
    segment, seq = parse_name(name), snapshot_seq(name)
    if segment is not None:
        decode_segment(data, session_id=session_id, first_seq=segment.first_seq, last_seq=segment.last_seq)
    elif seq is not None:
        snapshot = decode_snapshot(unpack(data, SNAPSHOT_BYTES_MAX) if name.endswith(".zst") else data)
        if (snapshot.session_id, snapshot.seq) != (session_id, seq):
            raise Damaged(f"it holds seq {snapshot.seq} of {snapshot.session_id}")
    elif name.endswith("/manifest.json"):
        return decode_manifest(data, session_id)
    elif name.endswith("/facts.json"):
        decode_facts(data)
    else:
        raise Damaged("its name is none of ours")
    return None
