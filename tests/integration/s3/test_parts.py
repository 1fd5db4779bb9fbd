"""Large objects into a bucket, in parts."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog

from sojourn.actors.errors import (
    ObjectExists,
    StoreUnavailable,
)
from sojourn.runtime.stores.objects_s3 import PART_BYTES, S3Objects
from tests.support import s3
from tests.support.s3 import Fault, hangs_up, says, stored, uploads

from .common import COMPLETING, KEY, LARGE, OBJECT, UPLOADING, cancelled_while_held, on_both, put_by_another

pytestmark = pytest.mark.anyio


async def test_a_large_object_goes_in_parts_and_comes_back(
    objects: S3Objects, proxy: s3.Proxy, bucket: str
) -> None:
    await objects.put(OBJECT, LARGE, create_only=True)
    assert [len(request.body) for request in proxy.requests if UPLOADING in request.target] == [
        PART_BYTES,
        PART_BYTES,
        14,
    ]
    assert await objects.get(OBJECT) == LARGE
    assert uploads(bucket) == []


@on_both
async def test_every_step_of_a_large_object_is_repeated_and_the_object_is_there_once(
    objects: S3Objects, proxy: s3.Proxy, bucket: str
) -> None:
    proxy.faults += [
        Fault("POST", r"\?uploads", before=says(503, "SlowDown")),
        Fault("PUT", "partNumber=1", after=says(500)),
        Fault("PUT", "partNumber=2", after=hangs_up),
        Fault("POST", COMPLETING, before=says(500)),
    ]
    await objects.put(OBJECT, LARGE, create_only=True)
    assert stored(bucket) == {KEY: LARGE}
    assert uploads(bucket) == []


@pytest.mark.parametrize(
    "second",
    [None, says(404, "NoSuchUpload"), says(412, "PreconditionFailed")],
    ids=["as it is", "404", "412"],
)
async def test_a_completion_that_was_done_and_not_answered_is_accepted(
    objects: S3Objects, proxy: s3.Proxy, bucket: str, second: Callable[[Any], s3.Answer] | None
) -> None:
    proxy.faults.append(Fault("POST", COMPLETING, after=hangs_up))
    if second is not None:
        proxy.faults.append(Fault("POST", COMPLETING, before=second))
    await objects.put(OBJECT, LARGE, create_only=True)
    assert proxy.seen("POST", COMPLETING) == 2
    assert proxy.seen("PUT", UPLOADING) == 3
    assert stored(bucket) == {KEY: LARGE}
    assert uploads(bucket) == []


async def test_an_upload_that_somebody_took_away_is_begun_again(
    objects: S3Objects, proxy: s3.Proxy, bucket: str
) -> None:
    proxy.faults.append(Fault("PUT", "partNumber=3", before=says(404, "NoSuchUpload")))
    await objects.put(OBJECT, LARGE)
    assert proxy.seen("POST", r"\?uploads") == 2
    assert stored(bucket) == {KEY: LARGE}
    assert uploads(bucket) == []


async def test_a_large_create_leaves_what_stands_and_no_upload(
    objects: S3Objects, proxy: s3.Proxy, bucket: str
) -> None:
    proxy.faults.append(Fault("POST", COMPLETING, before=put_by_another(bucket)))
    with pytest.raises(ObjectExists):
        await objects.put(OBJECT, LARGE, create_only=True)
    assert stored(bucket) == {KEY: b"another's"}
    assert uploads(bucket) == []


async def test_an_upload_that_fails_is_taken_back(objects: S3Objects, proxy: s3.Proxy, bucket: str) -> None:
    proxy.faults.append(Fault("PUT", "partNumber=2", times=100, before=says(503)))
    with pytest.raises(StoreUnavailable):
        await objects.put(OBJECT, LARGE)
    assert stored(bucket) == {}
    assert uploads(bucket) == []


@on_both
async def test_a_cancelled_upload_ends_between_two_parts_and_is_taken_back(
    objects: S3Objects, proxy: s3.Proxy, bucket: str
) -> None:
    proxy.faults.append(Fault("PUT", "partNumber=1", hold_after=True))
    await cancelled_while_held(objects, proxy, LARGE)
    assert proxy.seen("PUT", UPLOADING) == 1
    assert stored(bucket) == {}
    assert uploads(bucket) == []


@on_both
@pytest.mark.parametrize("later", ["the next large object", "closing"])
async def test_an_upload_that_could_not_be_taken_back_is_remembered(
    proxy: s3.Proxy, bucket: str, later: str
) -> None:
    async with s3.opened(proxy, bucket, prefix="below") as objects:
        proxy.faults.append(Fault("PUT", UPLOADING, times=4, before=says(503)))
        proxy.faults.append(Fault("DELETE", times=4, before=says(503)))
        with structlog.testing.capture_logs() as logs, pytest.raises(StoreUnavailable):
            await objects.put(OBJECT, LARGE)
        assert [entry["event"] for entry in logs] == ["objects.upload_left"]
        assert uploads(bucket) == [KEY]
        if later == "the next large object":
            await objects.put("c", LARGE)
            assert uploads(bucket) == []
    assert uploads(bucket) == []


async def test_what_killed_writers_left_is_swept_once_it_is_old(
    objects: S3Objects, proxy: s3.Proxy, bucket: str
) -> None:
    for key in (KEY, "below/c", "elsewhere/d"):
        s3.backend().create_multipart_upload(bucket, key, {}, "STANDARD", [], None, None, None)
    s3.backend().put_object(bucket, "below/.sojourn-probe/0", b"")
    await objects.put("kept", b"x")
    assert await objects.sweep(datetime(2010, 1, 1, tzinfo=UTC)) == 0
    assert await objects.sweep(datetime.now(UTC) - timedelta(days=1)) == 2  # moto's uploads are all of 2010
    assert uploads(bucket) == ["elsewhere/d"]
    assert await objects.sweep(datetime.now(UTC) + timedelta(days=1)) == 1
    assert sorted(stored(bucket)) == ["below/kept"]
