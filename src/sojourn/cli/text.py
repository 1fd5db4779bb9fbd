"""Recorded text on a terminal, and numbers for people.

What a session recorded comes from anywhere: shown raw, it could move the cursor, rewrite what stands above, set the
window's title or answer for the user (CWE-150). So every escape but a colour is taken out, and what else is not
printable is shown as a picture of itself.
"""

import re
from datetime import datetime

# ECMA-48: CSI sequences; OSC, DCS, SOS, PM and APC strings up to their end, or to the end of the text; other escapes.
_SEQUENCE = re.compile(
    r"(?P<csi>(?:\x1b\[|\x9b)[0-?]*[ -/]*(?P<final>[@-~])?)"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f]).*?(?:\x07|\x1b\\|\x9c|\Z)"
    r"|\x1b[ -/]*[0-~]?",
    re.DOTALL,
)
_COLOUR = re.compile(r"\x1b\[[0-9;:]*m\Z")
_RESET = "\x1b[0m"
# C0 and DEL as control pictures; C1, line and paragraph separators and what turns the direction of text as U+FFFD.
_PICTURES = {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)} | {0x7F: 0x2421}
_PICTURES |= dict.fromkeys(
    [*range(0x80, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD
)
_PICTURES_KEEP_ESCAPE = {code: picture for code, picture in _PICTURES.items() if code != 0x1B}
_LINE_BREAKS = re.compile(r"[\t\n\r]+")


def terminal_safe(text: str, *, colours: bool = True) -> str:
    """`text` with its colours (closed at the end) and without anything else a terminal would act on. Tabs and line
    feeds stay; a carriage return before a line feed or at the end goes."""
    text = text.replace("\r\n", "\n").removesuffix("\r")
    if text.isprintable():
        return text
    if not colours:
        return _SEQUENCE.sub("", text).translate(_PICTURES)
    kept = _SEQUENCE.sub(_keep_colour, text).translate(_PICTURES_KEEP_ESCAPE)
    return kept + _RESET if "\x1b" in kept else kept


def _keep_colour(found: re.Match[str]) -> str:
    return found[0] if _COLOUR.match(found[0]) else ""


def one_line(text: object, limit: int = 200) -> str:
    """For a cell of a table or a line of a list: no line breaks, no colours, at most `limit` characters."""
    flat = terminal_safe(_LINE_BREAKS.sub(" ", str(text)), colours=False)
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def duration(seconds: float | None) -> str:
    """`85 ms`, `12.3 s`, `4 min 05 s`, `3 h 12 min`, `2 d 04 h`; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def size(count: int) -> str:
    """`812 B`, `79.6 MiB`."""
    if count < 1024:
        return f"{count} B"
    value, unit = count / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if value < 1023.95:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}"


def local_time(rfc3339: str | None) -> str:
    """In the reader's time zone, to the second; a dash for None."""
    if rfc3339 is None:
        return "-"
    return datetime.fromisoformat(rfc3339).astimezone().strftime("%Y-%m-%d %H:%M:%S")
