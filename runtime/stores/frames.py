"""How the records of one group commit lie in one row of bytes. Pure: bytes in, values out.

    row = directory body directory size

The body is the payloads, each followed by its checksum, so damage to one costs that record and no other. The directory
says whose they are and how long; it carries a checksum and stands at both ends, and a row is lost only when both are
damaged. It is written by columns, because then nearly all of the work is done in C: 0.6 us a record of 200 bytes
against 0.9 us with a head per record, and 0.8 us against 2.0 us to read it again.

Little endian. directory = magic, crc32 of the rest, its length, records, epoch; then first seqs (8 bytes each), counts
(4), payload lengths (4), kinds (1), and the session ids (ASCII, each followed by a newline). `size` is the directory's
length, by which the one at the end is found. A payload's checksum is its crc32, begun with its first seq.
"""

import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate
from zlib import crc32

from attrs import define

from ...actors.ports import Record

MAGIC = b"\xffSJ1"
CRC_BYTES = 4  # what a payload takes beside itself
ROW_BYTES_FULL = 8 * 1024 * 1024  # no payload begins behind this and a directory: offsets take 24 bits
_RECORDS_FULL = 64 * 1024

_HEAD = struct.Struct("<4sIIIQ")
_CRC = struct.Struct("<I")
_CHECKED = len(MAGIC) + _CRC.size  # the directory's checksum is of what stands behind it


@define
class Row:
    """The records of one row, by columns. `lengths` are those of payload and checksum; 0 where they do not hold."""

    data: bytes
    epoch: int
    session_ids: Sequence[str]
    first_seqs: Sequence[int]
    counts: Sequence[int]
    kinds: bytes
    lengths: Sequence[int]
    offsets: Sequence[int]


def encode(records: Sequence[Record]) -> list[Row]:
    """The records in as few rows as they fit in, in order: one, unless they are very many, very large, or of several
    epochs.

    Raises:
        ValueError: a number does not fit its field, or a session id is not ASCII or holds a newline.
    """
    if not records:
        return []
    size = sum([len(record.payload) + CRC_BYTES for record in records])
    if (
        size < ROW_BYTES_FULL
        and len(records) <= _RECORDS_FULL
        and len({record.epoch for record in records}) == 1
    ):
        return [_encode_row(records)]
    return [_encode_row(part) for part in _parts(records)]


def _parts(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    start = size = 0
    for at, record in enumerate(records):
        full = size >= ROW_BYTES_FULL or at - start == _RECORDS_FULL
        if at > start and (full or record.epoch != records[start].epoch):
            yield records[start:at]
            start, size = at, 0
        size += len(record.payload) + CRC_BYTES
    yield records[start:]


def _encode_row(records: Sequence[Record]) -> Row:
    payloads = [record.payload for record in records]
    session_ids = [record.session_id for record in records]
    first_seqs = [record.first_seq for record in records]
    counts = [record.count for record in records]
    kinds = bytes([record.kind for record in records])
    payload_bytes = list(map(len, payloads))
    names = "".join([f"{session_id}\n" for session_id in session_ids])
    if names.count("\n") != len(records):
        raise ValueError("a session id holds a newline")
    try:
        columns = b"".join(
            (
                struct.pack(f"<{len(records)}Q", *first_seqs),
                struct.pack(f"<{len(records)}I", *counts),
                struct.pack(f"<{len(records)}I", *payload_bytes),
                kinds,
                names.encode("ascii"),
            )
        )
        size = _HEAD.size + len(columns)
        rest = _HEAD.pack(MAGIC, 0, size, len(records), records[0].epoch)[_CHECKED:] + columns
    except struct.error as error:
        raise ValueError(f"a number of these records does not fit its field: {error}") from error
    directory = MAGIC + _CRC.pack(crc32(rest)) + rest
    body: list[bytes] = [directory] * (2 * len(records) + 3)
    body[1:-2:2] = payloads
    body[2:-2:2] = map(_CRC.pack, map(crc32, payloads, first_seqs))
    body[-1] = _CRC.pack(size)
    lengths = [size + CRC_BYTES for size in payload_bytes]
    offsets = list(accumulate(lengths[:-1], initial=size))
    return Row(b"".join(body), records[0].epoch, session_ids, first_seqs, counts, kinds, lengths, offsets)


def scan(data: bytes) -> Row | None:
    """A row as it was written, with length 0 for each record that does not hold; None where both directories are
    damaged, and with them all is lost."""
    row = _directory(data, 0)
    if row is None and len(data) > _CRC.size:
        row = _directory(data, len(data) - _CRC.size - _CRC.unpack_from(data, len(data) - _CRC.size)[0])
    if row is None:
        return None
    # By columns, as they are written: a call of `payload_of` for each of 300,000 records is a quarter second at a start.
    view = memoryview(data)
    ends = [at + length - CRC_BYTES for at, length in zip(row.offsets, row.lengths, strict=True)]
    found = map(crc32, [view[at:end] for at, end in zip(row.offsets, ends, strict=True)], row.first_seqs)
    held = b"".join([view[end : end + CRC_BYTES] for end in ends])
    if len(held) == CRC_BYTES * len(ends) and list(found) == list(struct.unpack(f"<{len(ends)}I", held)):
        return row
    pieces = [data[at : at + length] for at, length in zip(row.offsets, row.lengths, strict=True)]
    payloads = map(payload_of, pieces, row.first_seqs)
    row.lengths = [
        0 if payload is None else length for payload, length in zip(payloads, row.lengths, strict=True)
    ]
    return row


def has_both_directories(data: bytes) -> bool:
    """Whether a row that `scan` can read still has its second copy of what tells its records."""
    size = len(data) - _CRC.size
    length = _CRC.unpack_from(data, size)[0] if size >= 0 else 0
    return _HEAD.size <= length <= size and data[size - length : size] == data[:length]


def payload_of(piece: bytes, first_seq: int) -> bytes | None:
    """The payload of a record's piece of a row; None where it does not hold."""
    payload = piece[:-CRC_BYTES]
    return payload if _CRC.pack(crc32(payload, first_seq)) == piece[-CRC_BYTES:] else None


def _directory(data: bytes, start: int) -> Row | None:
    """The row by the directory at `start`, its payloads unseen; None where there is none that holds."""
    if start < 0 or start + _HEAD.size > len(data):
        return None
    magic, crc, size, total, epoch = _HEAD.unpack_from(data, start)
    # The checksum of nothing is 0, so a size of 0 would carry it: zeros in the head must not look like one that holds.
    if (
        magic != MAGIC
        or size < _HEAD.size + 17 * total
        or crc32(data[start + _CHECKED : start + size]) != crc
    ):
        return None
    at = start + _HEAD.size
    first_seqs = struct.unpack_from(f"<{total}Q", data, at)
    counts = struct.unpack_from(f"<{total}I", data, at + 8 * total)
    lengths = [n + CRC_BYTES for n in struct.unpack_from(f"<{total}I", data, at + 12 * total)]
    kinds = data[at + 16 * total : at + 17 * total]
    names = data[at + 17 * total : start + size].decode("ascii").splitlines()
    offsets = list(accumulate(lengths[:-1], initial=size))
    return Row(data, epoch, names, first_seqs, counts, kinds, lengths, offsets)
