"""Session ids: `sess_` and a UUIDv7 (RFC 9562, section 5.7) in hexadecimal, so that ids sort by time of creation."""

import hashlib
from datetime import datetime

PREFIX = "sess_"


def new_session_id(now: datetime, random: bytes) -> str:
    """Args: random: 10 bytes, of which 74 bits are used."""
    millis = int(now.timestamp() * 1000)
    return _format(millis << 80 | int.from_bytes(random), 7)


def session_id_for(command_id: str, user_id: str) -> str:
    """The id that a creation with a command id always gets, so that sending it again finds the same session: a hash in
    the form of a UUIDv8 (RFC 9562, section 5.8)."""
    digest = hashlib.sha256(f"{user_id}\0{command_id}".encode()).digest()
    return _format(int.from_bytes(digest[:16]), 8)


def _format(bits: int, version: int) -> str:
    bits &= ~(0xF << 76) & ~(0x3 << 62)
    return f"{PREFIX}{bits | version << 76 | 0x2 << 62:032x}"
