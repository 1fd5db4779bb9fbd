"""The manifest of a session that was handed over: which objects it consists of, and what it is. Canonical JSON.

It is the fact of a move, and the catalog's row its projection: it holds the row's record, so that a catalog can be built
anew from manifests alone.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from attrs import evolve, frozen

from ..actors.errors import Damaged
from ..actors.session.codec import STATE_FORMAT
from ..actors.session.model import Loss
from ..actors.session.record import decode_record, encode_record
from .layout import session_folder, snapshot_seq
from .segments import parse_name

FORMAT = 1
SNAPSHOT, SEGMENT = "snapshot", "segment"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@frozen(kw_only=True)
class ManifestObject:
    """One object as it lies in its store. `first_seq` and `last_seq`: which events a segment holds; of a snapshot both are
    the seq it stands at."""

    bytes: int
    first_seq: int
    kind: str
    last_seq: int
    name: str
    sha256: str


@frozen(kw_only=True)
class Manifest:
    """A session that is sealed, in one tier, at its last seq.

    Attributes:
        chain: a hash over the segments in their order, so that none can be exchanged, left out or put elsewhere unseen.
        epoch: of the session's last record.
        losses: events that are no more, and whose loss a person accepted: the only gaps between the segments.
        record: the public record as the catalog's row holds it, without the facts that may change after the seal.
        state_format: of the snapshot.
    """

    chain: str
    epoch: int
    losses: tuple[Loss, ...]
    objects: tuple[ManifestObject, ...]
    record: dict[str, Any]
    sealed_at: datetime
    seq: int
    session_id: str
    state_format: int = STATE_FORMAT
    tier: str

    @property
    def snapshot(self) -> ManifestObject:
        return next(entry for entry in self.objects if entry.kind == SNAPSHOT)

    @property
    def segments(self) -> tuple[ManifestObject, ...]:
        """By seq."""
        return tuple(entry for entry in self.objects if entry.kind == SEGMENT)


@frozen(kw_only=True)
class _Document:
    chain: str
    checksum: str
    epoch: int
    format: int
    losses: list[Loss]
    objects: list[ManifestObject]
    record: msgspec.Raw
    sealed_at: datetime
    seq: int
    session_id: str
    state_format: int
    tier: str


_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(_Document).decode
_decode_format = msgspec.json.Decoder(dict[str, Any]).decode


def entry_of(name: str, data: bytes) -> ManifestObject:
    """The entry of an object, by its name. Raises ValueError for a name of neither a snapshot nor a segment."""
    sha256, segment, seq = sha256_of(data), parse_name(name), snapshot_seq(name)
    if segment is not None:
        first_seq, last_seq, kind = segment.first_seq, segment.last_seq, SEGMENT
    elif seq is not None:
        first_seq, last_seq, kind = seq, seq, SNAPSHOT
    else:
        raise ValueError(f"{name} is neither a snapshot nor a segment")
    return ManifestObject(
        bytes=len(data), first_seq=first_seq, kind=kind, last_seq=last_seq, name=name, sha256=sha256
    )


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def chain_of(segments: Iterable[ManifestObject]) -> str:
    """SHA-256 over the hexadecimal digits of the hash so far (none at first) and of the next file's, segment by segment."""
    chain = ""
    for segment in segments:
        chain = hashlib.sha256((chain + segment.sha256).encode()).hexdigest()
    return chain


def encode_manifest(manifest: Manifest) -> bytes:
    """Canonical JSON, with a checksum over the rest."""
    document = _Document(
        chain=manifest.chain,
        checksum="",
        epoch=manifest.epoch,
        format=FORMAT,
        losses=list(manifest.losses),
        objects=list(manifest.objects),
        record=msgspec.Raw(encode_record(manifest.record)),
        sealed_at=manifest.sealed_at,
        seq=manifest.seq,
        session_id=manifest.session_id,
        state_format=manifest.state_format,
        tier=manifest.tier,
    )
    return _encode(evolve(document, checksum=sha256_of(_encode(document))))


def decode_manifest(data: bytes, session_id: str) -> Manifest:
    """The manifest of this session.

    Raises:
        Damaged: it is not whole, of another session, of a newer format, or what it lists is not one whole session.
    """
    try:
        version = _decode_format(data).get("format")
        if isinstance(version, int) and version > FORMAT:
            raise Damaged(
                f"manifest format {version} of {session_id} is newer than this version's {FORMAT}; upgrade Sojourn"
            )
        document = _decode(data)
        unsigned = _encode(evolve(document, checksum=""))
        if sha256_of(unsigned) != document.checksum or _encode(document) != data:
            raise Damaged(f"the manifest of {session_id} does not carry its checksum")
        record = decode_record(bytes(document.record))
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        raise Damaged(f"the manifest of {session_id} cannot be read: {error}") from error
    if document.session_id != session_id:
        raise Damaged(f"the manifest of {session_id} is that of {document.session_id}")
    manifest = Manifest(
        chain=document.chain,
        epoch=document.epoch,
        losses=tuple(document.losses),
        objects=tuple(document.objects),
        record=record,
        sealed_at=document.sealed_at,
        seq=document.seq,
        session_id=document.session_id,
        state_format=document.state_format,
        tier=document.tier,
    )
    if wrong := _mistake(manifest):
        raise Damaged(f"the manifest of {session_id} {wrong}")
    return manifest


def _mistake(manifest: Manifest) -> str | None:
    """What keeps the listed objects from being one whole session; None where nothing does."""
    folder = f"{session_folder(manifest.session_id)}/"
    for entry in manifest.objects:
        if not entry.name.startswith(folder) or not _SHA256.fullmatch(entry.sha256):
            return f"lists {entry.name[:200]!r}, which is no object of that session"
    snapshots = [entry.last_seq for entry in manifest.objects if entry.kind == SNAPSHOT]
    if snapshots != [manifest.seq]:
        return f"lists snapshots at {snapshots}, and needs one at its seq {manifest.seq}"
    segments = manifest.segments
    if manifest.chain != chain_of(segments):
        return "has segments that are not those of its hash chain"
    if gap := gap_in(segments, manifest.losses, manifest.seq):
        return f"lists no segment with events {gap[0]} to {gap[1]}, and they were not accepted as lost"
    return None


def gap_in(
    segments: Sequence[ManifestObject], losses: Sequence[Loss], last_seq: int
) -> tuple[int, int] | None:
    """The first events up to `last_seq` that no segment holds, accepted losses aside; (seq, seq of the segment above - 1)."""
    at = 1
    for first_seq, end in [*((s.first_seq, s.last_seq) for s in segments), (last_seq + 1, last_seq)]:
        while at < first_seq:
            loss = next((loss for loss in losses if loss.first_seq <= at <= loss.last_seq), None)
            if loss is None:
                return at, first_seq - 1
            at = loss.last_seq + 1
        at = max(at, end + 1)
    return None
