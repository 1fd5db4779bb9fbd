"""A mirror on a real server, and what is sent there."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from sojourn.actors.ports import MirrorUpdate
from sojourn.runtime.stores.mirror_redis import RedisMirror


def update(
    first_seq: int,
    last_seq: int | None = None,
    documents: Mapping[str, bytes | None] | None = None,
    *,
    session_id: str = "a",
    epoch: int = 1,
    whole: bool = False,
) -> MirrorUpdate:
    last_seq = last_seq or first_seq
    return MirrorUpdate(
        session_id=session_id,
        epoch=epoch,
        first_seq=first_seq,
        last_seq=last_seq,
        events=tuple(b"event %d" % seq for seq in range(first_seq, last_seq + 1)),
        documents=documents or {"progress": b"%d" % last_seq},
        whole=whole,
    )


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[RedisMirror]:
    mirror = await RedisMirror.open(url, **options)
    try:
        yield mirror
    finally:
        await mirror.close()
