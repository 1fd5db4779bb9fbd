"""Segments: compressed stretches of a session's event history, as files that a person can read with `zstdcat`.

    header line   {"count","epochs","first_seq","format","last_seq","session_id","sha256"}
    event lines   as they stood in the journal, each with its newline

`sha256` is of the event lines; `epochs` says from which seq on which epoch wrote. A file is one zstd frame and then a
skippable frame with the CRC-32 of the first: a frame's own checksum is of what it unfolds to, and leaves a few bits of
the file itself unseen. Source of the format: RFC 8878.
"""

import hashlib
import re
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence

import msgspec
from attrs import frozen

from ..actors.errors import Damaged
from ..actors.ports import Record

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FORMAT = 1
LEVEL = 3
SEGMENT_BYTES_FULL = (
    2 * 1024 * 1024
)  # of event lines, and what a reader holds at once; a longer record stands alone
SEGMENT_BYTES_MAX = 512 * 1024 * 1024  # what a segment may unfold to when it is read
_SEAL = struct.Struct("<4sII")  # a skippable frame: magic, size, CRC-32
_SEAL_MAGIC = b"\x50\x2a\x4d\x18"
_NAME = re.compile(r"events-(\d{12})-(\d{12})\.ndjson\.zst$")


@frozen(kw_only=True)
class SegmentName:
    """Which events a segment holds, as its name says."""

    name: str
    first_seq: int
    last_seq: int


@frozen(kw_only=True)
class _Header:
    count: int
    epochs: list[tuple[int, int]]
    first_seq: int
    format: int
    last_seq: int
    session_id: str
    sha256: str


_encode = msgspec.json.Encoder(order="deterministic").encode
_decode_header = msgspec.json.Decoder(_Header).decode


def segment_name(folder: str, first_seq: int, last_seq: int) -> str:
    """Sorts by seq within the session's folder."""
    return f"{folder}/events-{first_seq:012d}-{last_seq:012d}.ndjson.zst"


def parse_name(name: str) -> SegmentName | None:
    """None for the name of another kind of object."""
    match = _NAME.search(name)
    if match is None:
        return None
    return SegmentName(name=name, first_seq=int(match[1]), last_seq=int(match[2]))


def payload_bytes(records: Sequence[Record]) -> int:
    """What they hold."""
    return sum([len(record.payload) for record in records])


def encode_segment(session_id: str, records: Sequence[Record]) -> bytes:
    """Records that follow each other, without gap or overlap, as one segment.

    Raises:
        ValueError: they do not follow each other, or there are none.
    """
    if not records:
        raise ValueError("a segment holds at least one record")
    seq = records[0].first_seq - 1
    epochs: list[tuple[int, int]] = []
    for record in records:
        if record.session_id != session_id or record.first_seq != seq + 1:
            raise ValueError(f"seq {record.first_seq} does not follow {seq} of {session_id}")
        if not epochs or epochs[-1][1] != record.epoch:
            epochs.append((record.first_seq, record.epoch))
        seq = record.last_seq
    body = b"".join([record.payload for record in records])
    header = _Header(
        count=seq - records[0].first_seq + 1,
        epochs=epochs,
        first_seq=records[0].first_seq,
        format=FORMAT,
        last_seq=seq,
        session_id=session_id,
        sha256=hashlib.sha256(body).hexdigest(),
    )
    return pack(_encode(header) + b"\n" + body)


def decode_segment(data: bytes, *, session_id: str, first_seq: int, last_seq: int) -> list[Record]:
    """The records of a segment, one for each epoch in it.

    Raises:
        Damaged: it is not whole, or not the one that its name promises, or of a newer format.
    """
    text = unpack(data, SEGMENT_BYTES_MAX)
    end = text.find(b"\n") + 1
    try:
        header = _decode_header(text[:end])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Damaged(f"a segment of {session_id} has no header that can be read: {error}") from error
    if header.format > FORMAT:
        raise Damaged(
            f"segment format {header.format} is newer than this version's {FORMAT}; upgrade Sojourn"
        )
    body = text[end:]
    if hashlib.sha256(body).hexdigest() != header.sha256:
        raise Damaged(f"the segment {first_seq}-{last_seq} of {session_id} does not carry its checksum")
    named = (session_id, first_seq, last_seq, last_seq - first_seq + 1)
    if (header.session_id, header.first_seq, header.last_seq, header.count) != named:
        raise Damaged(
            f"the segment named {first_seq}-{last_seq} of {session_id} holds {header.first_seq}-{header.last_seq} of "
            f"{header.session_id}"
        )
    return list(_records(header, body))


def _records(header: _Header, body: bytes) -> Iterator[Record]:
    if len(header.epochs) == 1:
        yield Record(header.session_id, header.first_seq, header.count, header.epochs[0][1], body)
        return
    lines = body.splitlines(keepends=True)
    ends = [first_seq for first_seq, _ in header.epochs[1:]] + [header.last_seq + 1]
    for (first_seq, epoch), end in zip(header.epochs, ends, strict=True):
        payload = b"".join(lines[first_seq - header.first_seq : end - header.first_seq])
        yield Record(header.session_id, first_seq, end - first_seq, epoch, payload)


def pack(text: bytes) -> bytes:
    """`text` compressed, so that `unpack` notices every flipped bit."""
    frame = zstd.compress(text, level=LEVEL)
    return frame + _SEAL.pack(_SEAL_MAGIC, 4, zlib.crc32(frame))


def unpack(data: bytes, bytes_max: int) -> bytes:
    """What `pack` was given.

    Raises:
        Damaged: it is not whole, does not carry its checksum, or unfolds to more than `bytes_max`.
    """
    frame = data[: -_SEAL.size]
    if data[-_SEAL.size :] != _SEAL.pack(_SEAL_MAGIC, 4, zlib.crc32(frame)):
        raise Damaged("a compressed object is cut short or does not carry its checksum")
    decompressor = zstd.ZstdDecompressor()
    try:
        text = decompressor.decompress(frame, max_length=bytes_max)
    except zstd.ZstdError as error:
        raise Damaged(f"a compressed object cannot be read: {error}") from error
    if not decompressor.eof or decompressor.unused_data:
        raise Damaged(f"a compressed object has something behind it, or unfolds to over {bytes_max:,} bytes")
    return text
