"""What the mirror's keys are called, and which names are taken. docs/redis.md shows the same to readers in any language.

Everything of one session carries the tag of one of sixteen shards, so on a cluster it lies on one node, and the updates of
many sessions are sixteen calls at most.
"""

import re
from functools import lru_cache
from zlib import crc32

from ...actors.ports import MirrorUpdate

NAMESPACE = "sojourn"
SHARDS = 16
EPOCH, SEQ = "@epoch", "@seq"  # fields of a session's hash beside its documents
EVENTS, GONE, LIVE = ":events", ":gone", ":live"

_SESSION_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def shard_of(session_id: str) -> int:
    """0 to 15: the CRC-32 of the id, modulo 16."""
    return crc32(session_id.encode()) % SHARDS


def tag(shard: int) -> str:
    return f"{{s{shard:02d}}}"


def owner_key(namespace: str) -> str:
    """Who writes in this namespace; no session is called like it."""
    return f"{namespace}:{tag(0)}:@owner"


@lru_cache(maxsize=16_384)
def session_key(namespace: str, session_id: str) -> str:
    """The session's hash; the names of its other keys begin with this one. Raises ValueError for what is no session id: a
    brace or a colon in it would lead elsewhere."""
    check_session_id(session_id)
    return f"{namespace}:{tag(shard_of(session_id))}:{session_id}"


def check_session_id(session_id: str) -> None:
    if not _SESSION_ID.fullmatch(session_id):
        raise ValueError(f"{session_id!r:.200} is no session id: it has to be 1 to 128 of [A-Za-z0-9_-]")


def check_namespace(namespace: str) -> str:
    if not _NAMESPACE.fullmatch(namespace):
        raise ValueError(f"{namespace!r:.200} is no namespace: it has to be 1 to 64 of [A-Za-z0-9_.-]")
    return namespace


def check_update(update: MirrorUpdate) -> None:
    """Raises ValueError where the update's session id or the name of a document cannot be."""
    check_session_id(update.session_id)
    for name in update.documents:
        check_document_name(name)


def check_document_name(name: str) -> None:
    if name[:1] == "@":
        raise ValueError(f"a document cannot be called {name!r:.200}: names with @ are the mirror's own")
