"""From bytes to log lines: bounded, valid UTF-8, and of a progress bar only what was left standing."""

import msgspec
from attrs import define

# Limits of the wire (docs/protocol.md); the margin is for what stands beside the text in its command.
TEXT_BYTES_MAX = 64 * 1024
ENCODED_BYTES_MAX = 250 * 1024
# However it is written (replaced by three bytes, escaped by six), a byte of these fits within both limits.
_SAFE_BYTES = TEXT_BYTES_MAX // 3
# One more, so that a line of exactly the limit and its carriage return fit.
_KEPT_BYTES_MAX = TEXT_BYTES_MAX + 1


@define
class Line:
    """One line as it is stored. `truncated_bytes` of it were cut at its end."""

    text: str
    truncated_bytes: int
    invalid_utf8: bool


class LineSplitter:
    """Cuts a stream of bytes into lines. Keeps at most one line's limit in memory, however long the line is."""

    def __init__(self) -> None:
        self._kept = b""
        self._cut_bytes = 0

    def feed(self, data: bytes) -> list[Line]:
        """The lines that `data` ends."""
        *ended, rest = data.split(b"\n")
        lines = []
        for part in ended:
            self._add(part)
            lines.append(self._take())
        self._add(rest)
        return lines

    def end(self) -> list[Line]:
        """What stands after the last line end, if there is anything."""
        return [self._take()] if self._kept.rstrip(b"\r") else []

    def _add(self, part: bytes) -> None:
        joined = self._kept + part
        # What precedes a carriage return was written over; one at the very end may be half of a line end.
        start = joined.rstrip(b"\r").rfind(b"\r") + 1
        if start:
            joined = joined[start:]
            self._cut_bytes = 0
        self._kept = joined[:_KEPT_BYTES_MAX]
        self._cut_bytes += len(joined) - len(self._kept)

    def _take(self) -> Line:
        kept, cut_bytes = self._kept, self._cut_bytes
        self._kept, self._cut_bytes = b"", 0
        return stored_line(kept if cut_bytes else kept.rstrip(b"\r"), cut_bytes)


def stored_line(raw: bytes, cut_bytes: int = 0) -> Line:
    """What is kept of a line of which `cut_bytes` are cut already."""
    if len(raw) <= _SAFE_BYTES and not cut_bytes:  # nearly every line
        return _decoded(raw)
    for limit in (TEXT_BYTES_MAX, _SAFE_BYTES):
        line = _shortened(raw, limit, cut_bytes)
        if (
            len(line.text.encode()) <= TEXT_BYTES_MAX
            and len(msgspec.json.encode(line.text)) <= ENCODED_BYTES_MAX
        ):
            break
    return line


def _shortened(raw: bytes, limit: int, cut_bytes: int) -> Line:
    kept = raw[:limit]
    cut_bytes += len(raw) - len(kept)
    if cut_bytes:
        # A character that the cut went through is cut whole, and is no invalid one: at most three bytes of four.
        for back in range(1, min(4, len(kept)) + 1):
            if kept[-back] & 0xC0 == 0x80:
                continue
            if kept[-back] >= 0xC0 and _decoded(kept[-back:]).invalid_utf8:
                cut_bytes += back
                kept = kept[:-back]
            break
    return _decoded(kept, cut_bytes)


def _decoded(kept: bytes, cut_bytes: int = 0) -> Line:
    try:
        return Line(kept.decode(), cut_bytes, False)
    except UnicodeDecodeError:
        return Line(kept.decode("utf-8", "replace"), cut_bytes, True)
