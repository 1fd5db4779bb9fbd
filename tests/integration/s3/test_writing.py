"""Objects into a bucket: what networks and servers do to requests, and what becomes of the objects."""

import hashlib
import random
import zlib
from base64 import b64decode
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sojourn.actors.errors import (
    Damaged,
    ObjectExists,
    StoreUnavailable,
    TooLarge,
)
from sojourn.runtime.stores.objects_s3 import S3Objects
from sojourn.runtime.stores.s3_patience import Patience
from tests.support import s3
from tests.support.s3 import Fault, flips, hangs_up, says, stored
from tests.support.wait import await_until

from .common import (
    IN_TROUBLE,
    KEY,
    OBJECT,
    SHORT_TRIES,
    cancelled_while_held,
    names,
    on_both,
    put_by_another,
)

pytestmark = pytest.mark.anyio


async def test_an_object_goes_with_its_checksums_and_below_the_prefix(
    objects: S3Objects, proxy: s3.Proxy, bucket: str
) -> None:
    await objects.put(OBJECT, b"data", create_only=True)
    assert stored(bucket) == {KEY: b"data"}
    (request,) = proxy.requests
    assert request.target == f"/{bucket}/{KEY}"
    assert request.headers["if-none-match"] == "*"
    assert request.headers["x-amz-meta-sha256"] == hashlib.sha256(b"data").hexdigest()
    assert request.headers["x-amz-meta-bytes"] == "4"
    assert b64decode(request.headers["x-amz-checksum-crc32"]) == zlib.crc32(b"data").to_bytes(4, "big")


async def test_every_operation_is_repeated_while_the_server_is_in_trouble(
    objects: S3Objects, proxy: s3.Proxy, bucket: str
) -> None:
    for trouble in IN_TROUBLE:
        proxy.requests.clear()
        for method in ("PUT", "GET", "DELETE"):
            proxy.faults.append(Fault(method, times=2, before=trouble))
        await objects.put(OBJECT, b"data", create_only=True)
        assert stored(bucket) == {KEY: b"data"}
        assert await objects.get(OBJECT) == b"data"
        proxy.faults.append(Fault("GET", times=2, before=trouble))
        assert await names(objects) == [OBJECT]
        await objects.delete(OBJECT)
        assert stored(bucket) == {}
        assert [proxy.seen(method) for method in ("PUT", "GET", "DELETE")] == [3, 6, 3]


async def test_repetitions_are_bounded(objects: S3Objects, proxy: s3.Proxy, bucket: str) -> None:
    proxy.faults.append(Fault("PUT", times=100, before=says(503, "SlowDown")))
    with pytest.raises(StoreUnavailable, match=r"503 SlowDown.*outcome is unknown"):
        await objects.put(OBJECT, b"data")
    assert proxy.seen("PUT") == s3.HASTE.tries_max
    assert stored(bucket) == {}


@on_both
@pytest.mark.parametrize("lost", [says(503), hangs_up])
async def test_a_create_that_was_done_and_not_answered_is_not_refused_by_its_own_repetition(
    objects: S3Objects, proxy: s3.Proxy, bucket: str, lost: Callable[[Any], s3.Answer | None]
) -> None:
    proxy.faults.append(Fault("PUT", after=lost))
    await objects.put(OBJECT, b"data", create_only=True)
    assert proxy.seen("PUT") == 2
    assert stored(bucket) == {KEY: b"data"}
    assert await objects.get(OBJECT) == b"data"


@on_both
async def test_a_create_whose_answer_is_late_is_sent_again_and_accepted(proxy: s3.Proxy, bucket: str) -> None:
    proxy.faults.append(Fault("PUT", hold_after=True))
    async with s3.opened(proxy, bucket, prefix="below", patience=SHORT_TRIES) as objects:
        await objects.put(OBJECT, b"data", create_only=True)
    assert proxy.seen("PUT") >= 2
    assert stored(bucket) == {KEY: b"data"}


async def test_a_refusal_whose_reason_has_gone_is_asked_again(
    objects: S3Objects, proxy: s3.Proxy, bucket: str
) -> None:
    proxy.faults.append(Fault("PUT", before=says(412, "PreconditionFailed")))
    proxy.faults.append(Fault("PUT", before=says(409, "ConditionalRequestConflict")))
    await objects.put(OBJECT, b"data", create_only=True)
    assert stored(bucket) == {KEY: b"data"}


async def test_a_conflict_without_end_is_given_up(objects: S3Objects, proxy: s3.Proxy, bucket: str) -> None:
    proxy.faults.append(Fault("PUT", times=100, before=says(409, "ConditionalRequestConflict")))
    with pytest.raises(StoreUnavailable, match="by others at the same time"):
        await objects.put(OBJECT, b"data")
    assert stored(bucket) == {}


async def test_what_another_wrote_is_never_taken_for_ones_own_be_it_the_same_bytes(
    objects: S3Objects, proxy: s3.Proxy, bucket: str
) -> None:
    proxy.faults.append(Fault("PUT", before=put_by_another(bucket, b"data")))
    with pytest.raises(ObjectExists, match=KEY):
        await objects.put(OBJECT, b"data", create_only=True)
    assert stored(bucket) == {KEY: b"data"}


async def test_an_existing_object_is_not_downloaded_to_be_refused(
    objects: S3Objects, proxy: s3.Proxy
) -> None:
    await objects.put(OBJECT, b"first")
    proxy.requests.clear()
    with pytest.raises(ObjectExists):
        await objects.put(OBJECT, b"second", create_only=True)
    assert [request.method for request in proxy.requests] == ["PUT", "GET"]
    assert await objects.get(OBJECT) == b"first"


async def test_a_write_that_stands_as_something_else_is_damaged(objects: S3Objects, proxy: s3.Proxy) -> None:
    proxy.faults.append(Fault("PUT", after=says(500)))
    proxy.faults.append(Fault("GET", times=100, after=flips))
    with pytest.raises(Damaged, match=KEY):
        await objects.put(OBJECT, b"data", create_only=True)


@on_both
async def test_a_server_that_never_answers_costs_the_deadline_and_the_outcome_is_unknown(
    proxy: s3.Proxy, bucket: str
) -> None:
    proxy.faults.append(Fault("PUT", times=100, hold_after=True))
    patience = Patience(deadline_s=1.0, try_s=10.0)
    async with s3.opened(proxy, bucket, prefix="below", patience=patience) as objects:
        with anyio.fail_after(10):
            with pytest.raises(StoreUnavailable, match="outcome is unknown"):
                await objects.put(OBJECT, b"data")
    assert proxy.seen("PUT") == 1
    assert stored(bucket) == {KEY: b"data"}


@on_both
async def test_a_cancelled_writer_waits_for_its_answer(
    objects: S3Objects, proxy: s3.Proxy, bucket: str
) -> None:
    proxy.faults.append(Fault("PUT", hold_after=True))
    await cancelled_while_held(objects, proxy, b"data")
    assert stored(bucket) == {KEY: b"data"}
    assert proxy.seen("PUT") == 1


@on_both
async def test_a_cancelled_writer_whose_request_failed_sends_no_other(
    objects: S3Objects, proxy: s3.Proxy, bucket: str
) -> None:
    proxy.faults.append(Fault("PUT", hold=True))
    await cancelled_while_held(objects, proxy, b"data")
    assert stored(bucket) == {}
    assert proxy.seen("PUT") == 1


@on_both
async def test_a_cancelled_reader_goes_at_once(objects: S3Objects, proxy: s3.Proxy) -> None:
    await objects.put(OBJECT, b"data")
    proxy.faults.append(Fault("GET", hold=True))
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(objects.get, OBJECT)
            await await_until(lambda: proxy.holding)
            tasks.cancel_scope.cancel()
    assert await objects.get(OBJECT) == b"data"


async def test_what_is_too_large_or_too_long_is_refused_before_anything_is_sent(
    proxy: s3.Proxy, bucket: str
) -> None:
    async with s3.opened(proxy, bucket, prefix="below", object_bytes_max=10) as objects:
        with pytest.raises(TooLarge, match="10 bytes"):
            await objects.put(OBJECT, bytes(11))
        with pytest.raises(ValueError, match="no object name here"):
            await objects.put("/".join(["a" * 255] * 4), b"x")
        await objects.put(OBJECT, bytes(10))
    assert proxy.seen("PUT") == 1


@on_both
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_whatever_happens_on_the_way_what_was_acknowledged_is_there_and_nothing_else(
    objects: S3Objects, proxy: s3.Proxy, bucket: str, seed: int
) -> None:
    chance = random.Random(seed)
    for method in ("PUT", "GET", "DELETE"):
        for _ in range(60):
            # A fault that answers as the server does keeps the next one for a later request.
            kind = chance.choice(["none", "none", "before", "after"])
            act = (lambda answer: answer) if kind == "none" else chance.choice(IN_TROUBLE)
            proxy.faults.append(Fault(method, before=act if kind == "before" else None, after=act))
    expected: dict[str, bytes] = {}
    unknown: set[str] = set()

    async def work(n: int) -> None:
        name, data = f"s/{n}", b"%d" % n * n
        try:
            await objects.put(name, data, create_only=True)  # nobody else writes it: never ObjectExists
            expected[name] = data
            assert await objects.get(name) == data
            if n % 3 == 0:
                del expected[name]
                await objects.delete(name)
        except StoreUnavailable:
            unknown.add(name)

    async with anyio.create_task_group() as tasks:
        for n in range(1, 31):
            tasks.start_soon(work, n)
    held = {key.removeprefix("below/"): data for key, data in stored(bucket).items()}
    known = expected.keys() - unknown
    assert {name: held[name] for name in known} == {name: expected[name] for name in known}
    assert held.keys() <= expected.keys() | unknown
    assert len(known) > 10
    assert all(data == name[2:].encode() * int(name[2:]) for name, data in held.items())
