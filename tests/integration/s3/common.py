"""What these tests share."""

from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sojourn.runtime.stores.objects_s3 import PART_BYTES, S3Objects
from sojourn.runtime.stores.s3_patience import Patience
from tests.support import s3
from tests.support.s3 import hangs_up, says
from tests.support.wait import await_until

# The contract suite runs on both event loops; here those tests do that are about waiting, cancelling and closing.
on_both = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])

LARGE = bytes(2 * PART_BYTES) + b"the third part"
SHORT_TRIES = Patience(deadline_s=30.0, try_s=0.7, tries_max=8, pause_s=0.001, pause_s_max=0.01)
OBJECT, KEY = "a/b.json", "below/a/b.json"
UPLOADING, COMPLETING = "partNumber=", r"\?uploadId="
IN_TROUBLE = [says(500, "InternalError"), says(503, "SlowDown"), says(502), says(429), hangs_up]


async def names(objects: S3Objects, prefix: str = "") -> list[str]:
    return [name async for name in objects.list(prefix)]


def put_by_another(bucket: str, data: bytes = b"another's") -> Callable[[Any], s3.Answer]:
    """In place of this request's answer: another writer gets there first, and the server stumbles."""

    def act(_: Any) -> s3.Answer:
        s3.backend().put_object(bucket, KEY, data)
        return says(500)(None)

    return act


async def cancelled_while_held(objects: S3Objects, proxy: s3.Proxy, data: bytes) -> None:
    """A put is cancelled while the proxy holds its request, is seen to wait, and ends with the request."""
    scope = anyio.CancelScope()

    async def put() -> None:
        with scope:
            await objects.put(OBJECT, data)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(put)
        await await_until(lambda: proxy.holding)
        scope.cancel()
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        assert proxy.holding == 1
        proxy.release()
