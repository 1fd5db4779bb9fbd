"""Objects in a bucket: what networks and servers do to requests, and what becomes of the objects."""

import hashlib
import inspect
import random
import re
import zlib
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import structlog
from botocore.exceptions import (  # type: ignore[import-untyped]
    FlexibleChecksumError,
    ParamValidationError,
    SSLError,
)
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]

from sojourn.actors.errors import (
    Damaged,
    NotOpen,
    ObjectExists,
    ObjectMissing,
    StorageFull,
    StoreError,
    StoreUnavailable,
    TooLarge,
    UnusableArchive,
)
from sojourn.runtime.stores.archive import S3Place, open_archive, read_setting
from sojourn.runtime.stores.objects_folder import FolderObjects
from sojourn.runtime.stores.objects_s3 import PART_BYTES, S3Objects
from sojourn.runtime.stores.s3_faults import may_pass, translated
from sojourn.runtime.stores.s3_patience import Patience
from tests.support import s3
from tests.support.s3 import Fault, cuts, flips, hangs_up, says, stored, uploads
from tests.support.wait import await_until

pytestmark = pytest.mark.anyio
# The contract suite runs on both event loops; here those tests do that are about waiting, cancelling and closing.
on_both = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])

LARGE = bytes(2 * PART_BYTES) + b"the third part"
SHORT_TRIES = Patience(deadline_s=30.0, try_s=0.7, tries_max=8, pause_s=0.001, pause_s_max=0.01)
OBJECT, KEY = "a/b.json", "below/a/b.json"
UPLOADING, COMPLETING = "partNumber=", r"\?uploadId="
IN_TROUBLE = [says(500, "InternalError"), says(503, "SlowDown"), says(502), says(429), hangs_up]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3.serving() as server:
        yield server


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3.Proxy]:
    s3.set_credentials(monkeypatch)
    with s3.proxying(server) as proxy:
        yield proxy


@pytest.fixture
def bucket() -> str:
    return s3.make_bucket()


@pytest.fixture
async def objects(proxy: s3.Proxy, bucket: str) -> AsyncIterator[S3Objects]:
    async with s3.opened(proxy, bucket, prefix="below") as objects:
        yield objects


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


# -- writing ---------------------------------------------------------------------------------------------------------


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


# -- in parts --------------------------------------------------------------------------------------------------------


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


# -- reading ---------------------------------------------------------------------------------------------------------


@on_both
@pytest.mark.parametrize("hurt", [flips, cuts])
async def test_what_was_hurt_on_its_way_is_read_again(
    objects: S3Objects, proxy: s3.Proxy, hurt: Callable[[s3.Answer], s3.Answer]
) -> None:
    await objects.put(OBJECT, b"data" * 100_000)
    proxy.faults.append(Fault("GET", after=hurt))
    assert await objects.get(OBJECT) == b"data" * 100_000
    assert proxy.seen("GET") == 2


async def test_what_does_not_carry_its_checksum_is_damaged(objects: S3Objects, proxy: s3.Proxy) -> None:
    await objects.put(OBJECT, b"data")
    proxy.faults.append(Fault("GET", times=100, after=flips))
    with pytest.raises(Damaged, match=rf"{KEY}.*checksum"):
        await objects.get(OBJECT)


@on_both
async def test_what_always_ends_early_is_unavailable(objects: S3Objects, proxy: s3.Proxy) -> None:
    await objects.put(OBJECT, b"data" * 1_000)
    proxy.faults.append(Fault("GET", times=100, after=cuts))
    with pytest.raises(StoreUnavailable, match="GetObject"):
        await objects.get(OBJECT)


@on_both
async def test_a_body_that_stops_coming_is_read_again(proxy: s3.Proxy, bucket: str) -> None:
    async with s3.opened(proxy, bucket, prefix="below", patience=SHORT_TRIES) as objects:
        await objects.put(OBJECT, b"data")
        proxy.faults.append(Fault("GET", hold=True))
        assert await objects.get(OBJECT) == b"data"


async def test_what_others_put_there_is_damaged_and_says_why(objects: S3Objects, bucket: str) -> None:
    s3.backend().put_object(bucket, KEY, b"somebody's")
    with pytest.raises(Damaged, match="does not keep its metadata"):
        await objects.get(OBJECT)


async def test_what_was_cut_where_it_lies_is_damaged(objects: S3Objects, bucket: str) -> None:
    await objects.put(OBJECT, b"data")
    s3.backend().get_object(bucket, KEY).value = b"dat"
    with pytest.raises(Damaged, match="3 bytes and was written with 4"):
        await objects.get(OBJECT)


async def test_an_object_over_the_limit_is_not_read(proxy: s3.Proxy, bucket: str, objects: S3Objects) -> None:
    await objects.put(OBJECT, bytes(11))
    async with s3.opened(proxy, bucket, prefix="below", object_bytes_max=10) as strict:
        with pytest.raises(Damaged, match="over the limit of 10"):
            await strict.get(OBJECT)


@on_both
async def test_a_long_listing_comes_page_by_page(
    objects: S3Objects, proxy: s3.Proxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "10")
    expected = [f"a/{n:03d}" for n in range(35)]
    for name in expected:
        s3.backend().put_object(bucket, f"below/{name}", b"")
    listing = objects.list("a")
    assert inspect.isasyncgen(listing)
    assert [await anext(listing) for _ in range(10)] == expected[:10]
    assert proxy.seen("GET") == 1
    proxy.faults.append(Fault("GET", times=2, before=says(503)))
    assert [name async for name in listing] == expected[10:]
    assert proxy.seen("GET") == 6


async def test_keys_that_are_no_objects_of_ours_are_not_listed(objects: S3Objects, bucket: str) -> None:
    for key in (
        "below/",
        "below/a/",
        "below/.sojourn-probe/0",
        "below/.tmp-x",
        "below/x y",
        "belowother",
        KEY,
    ):
        s3.backend().put_object(bucket, key, b"")
    assert await names(objects) == [OBJECT]
    assert await names(objects, "a") == [OBJECT]


@pytest.mark.parametrize("wrong", ["unsorted", "without a token"])
async def test_a_listing_that_cannot_be_whole_is_refused(
    objects: S3Objects, proxy: s3.Proxy, wrong: str
) -> None:
    keys = ["b", "a"] if wrong == "unsorted" else ["a"]
    contents = "".join(f"<Contents><Key>below/{key}</Key></Contents>" for key in keys)
    truncated = str(wrong != "unsorted").lower()
    body = f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{contents}</ListBucketResult>".encode()
    answer = s3.Answer(200, [("content-length", str(len(body)))], body)
    proxy.faults.append(Fault("GET", before=lambda _: answer))
    with pytest.raises(StoreUnavailable, match="whole and sorted"):
        await names(objects)


# -- errors ----------------------------------------------------------------------------------------------------------


async def test_a_missing_bucket_is_named_with_the_setting(proxy: s3.Proxy) -> None:
    async with s3.opened(proxy, "no-such-bucket") as objects:
        with pytest.raises(UnusableArchive, match=r"no bucket 'no-such-bucket'.*setting archive"):
            await objects.probe()
        with pytest.raises(UnusableArchive, match="no bucket"):
            await objects.get("a")


async def test_a_missing_right_is_named_at_once(objects: S3Objects, proxy: s3.Proxy) -> None:
    await objects.put("there", b"x")
    calls: list[tuple[str, str, Callable[[], Any]]] = [
        ("PUT", "s3:PutObject", lambda: objects.put(OBJECT, b"x")),
        ("GET", "s3:GetObject", lambda: objects.get("there")),
        ("DELETE", "s3:DeleteObject", lambda: objects.delete("there")),
        ("GET", "s3:ListBucket", lambda: names(objects)),
    ]
    for method, right, call in calls:
        proxy.requests.clear()
        proxy.faults.append(Fault(method, before=says(403, "AccessDenied")))
        with pytest.raises(UnusableArchive, match=f"{right} is not granted"):
            await call()
        assert len(proxy.requests) == 1


async def test_a_refusal_says_cause_and_remedy_and_is_not_repeated(
    objects: S3Objects, proxy: s3.Proxy, bucket: str
) -> None:
    refusals: list[tuple[int, str, type[StoreError], str]] = [
        (403, "InvalidAccessKeyId", UnusableArchive, "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", UnusableArchive, "AWS_PROFILE"),
        (400, "ExpiredToken", UnusableArchive, "does not take these credentials"),
        (403, "RequestTimeTooSkewed", UnusableArchive, "clock"),
        (400, "AuthorizationHeaderMalformed", UnusableArchive, "region=REGION"),
        (507, "XMinioStorageFull", StorageFull, "nothing was written"),
        (400, "QuotaExceeded", StorageFull, "free some space"),
        (400, "InvalidRequest", StoreUnavailable, "400 InvalidRequest: as the test wants it"),
        (501, "NotImplemented", StoreUnavailable, "501 NotImplemented"),
    ]
    for status, code, kind, match in refusals:
        proxy.requests.clear()
        proxy.faults.append(Fault("PUT", before=says(status, code)))
        with pytest.raises(kind, match=match) as caught:
            await objects.put(OBJECT, b"data")
        assert type(caught.value) is kind
        assert caught.value.__cause__ is not None
        assert proxy.seen("PUT") == 1
    assert stored(bucket) == {}


@pytest.mark.parametrize(
    ("error", "kind", "match"),
    [
        (SSLError(endpoint_url="https://x", error="self-signed"), StoreUnavailable, "AWS_CA_BUNDLE"),
        (ParamValidationError(report="Bucket"), UnusableArchive, "setting archive"),
        (ResponseParserError("no XML"), StoreUnavailable, "does not speak S3"),
        (FlexibleChecksumError(error_msg="other"), Damaged, "checksum"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or type(value).__name__,
)
def test_an_error_of_the_driver_is_translated_and_repeating_would_not_help(
    error: Exception, kind: type[StoreError], match: str
) -> None:
    found = translated(error, "GetObject", place="archive s3://b", bucket="b", key="k")
    assert type(found) is kind
    assert re.search(match, str(found))
    assert not may_pass(error)


@on_both
async def test_a_server_that_is_not_there_is_unavailable(proxy: s3.Proxy, bucket: str) -> None:
    async with s3.opened(s3.Proxy("", "http://127.0.0.1:1"), bucket) as objects:
        for call in (objects.get("a"), objects.put("a", b""), objects.delete("a"), objects.probe()):
            with pytest.raises(StoreUnavailable, match=r"http://127.0.0.1:1 cannot be reached"):
                await call


@pytest.mark.parametrize("page", [b"<html><body>It works!<br></body></html>", b"<html></html>", b"hello"])
async def test_a_server_that_does_not_speak_s3_is_no_empty_bucket(
    objects: S3Objects, proxy: s3.Proxy, page: bytes
) -> None:
    answer = s3.Answer(200, [("content-type", "text/html"), ("content-length", str(len(page)))], page)
    for method in ("GET", "PUT", "DELETE"):
        proxy.faults.append(Fault(method, times=99, before=lambda _: answer))
    with pytest.raises(StoreUnavailable):
        await names(objects)
    with pytest.raises(StoreError):
        await objects.probe()


@on_both
async def test_without_credentials_it_is_said_where_they_are_looked_for(
    proxy: s3.Proxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    async with s3.opened(proxy, bucket) as objects:
        with pytest.raises(UnusableArchive, match=r"AWS_ACCESS_KEY_ID.*AWS_PROFILE.*~/.aws/credentials"):
            await objects.probe()
    assert proxy.requests == []


async def test_a_profile_that_is_not_there_is_named(
    proxy: s3.Proxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UnusableArchive, match="nobody"):
        await S3Objects.open(bucket, endpoint=proxy.endpoint)


async def test_a_closed_store_does_nothing(proxy: s3.Proxy, bucket: str) -> None:
    async with s3.opened(proxy, bucket) as objects:
        await objects.close()
        for call in (
            objects.get("a"),
            objects.put("a", b""),
            objects.delete("a"),
            objects.probe(),
            names(objects),
        ):
            with pytest.raises(NotOpen):
                await call
    assert proxy.requests == []


# -- at opening ------------------------------------------------------------------------------------------------------


async def test_the_probe_leaves_nothing(objects: S3Objects, bucket: str) -> None:
    await objects.probe()
    assert stored(bucket) == {}


async def test_the_probe_names_the_right_that_is_missing(objects: S3Objects, proxy: s3.Proxy) -> None:
    for method, target, right in (
        ("GET", "list-type=2", "s3:ListBucket"),
        ("PUT", "", "s3:PutObject"),
        ("GET", "probe/", "s3:GetObject"),
        ("DELETE", "", "s3:DeleteObject"),
    ):
        proxy.faults = [Fault(method, target, before=says(403, "AccessDenied"))]
        with pytest.raises(UnusableArchive, match=f"{right} is not granted"):
            await objects.probe()


async def test_the_probe_finds_a_server_that_drops_what_belongs_to_an_object(
    objects: S3Objects, proxy: s3.Proxy
) -> None:
    def without_metadata(answer: s3.Answer) -> s3.Answer:
        answer.headers = [pair for pair in answer.headers if not pair[0].lower().startswith("x-amz-meta")]
        return answer

    proxy.faults += [
        Fault("GET", "list-type=2", after=lambda answer: answer),
        Fault("GET", times=9, after=without_metadata),
    ]
    with pytest.raises(UnusableArchive, match="does not give back"):
        await objects.probe()


async def test_the_probe_finds_a_server_whose_creates_replace(objects: S3Objects, proxy: s3.Proxy) -> None:
    proxy.faults.append(Fault("PUT", after=lambda answer: answer))
    proxy.faults.append(Fault("PUT", before=lambda _: s3.Answer(200, [("content-length", "0")], b"")))
    with pytest.raises(UnusableArchive, match="If-None-Match"):
        await objects.probe()


@on_both
async def test_the_probe_waits_for_a_bounded_time(objects: S3Objects, proxy: s3.Proxy) -> None:
    proxy.faults.append(Fault("GET", times=9, hold=True))
    with anyio.fail_after(8), pytest.raises(StoreUnavailable):
        await objects.probe(within_s=0.2)


@on_both
async def test_an_archive_in_a_bucket_is_probed_and_opened(
    proxy: s3.Proxy, bucket: str, tmp_path: Path
) -> None:
    setting = f"s3://{bucket}/a/b?endpoint={proxy.endpoint}&region=eu-central-1"
    async with open_archive(setting, tmp_path) as objects:
        await objects.put("c", b"x")
    assert stored(bucket) == {"a/b/c": b"x"}
    with pytest.raises(NotOpen):
        await objects.put("c", b"y")


async def test_an_archive_whose_bucket_is_missing_is_not_opened(proxy: s3.Proxy, tmp_path: Path) -> None:
    with pytest.raises(UnusableArchive, match="no bucket"):
        async with open_archive(f"s3://no-such-bucket?endpoint={proxy.endpoint}", tmp_path):
            pytest.fail("it was opened")


async def test_an_archive_whose_server_is_away_is_opened_and_works_once_it_is_back(
    proxy: s3.Proxy, bucket: str, tmp_path: Path
) -> None:
    proxy.faults.append(Fault("GET", before=says(501)))
    with structlog.testing.capture_logs() as logs:
        async with open_archive(f"s3://{bucket}?endpoint={proxy.endpoint}", tmp_path) as objects:
            assert [entry["event"] for entry in logs] == ["archive.unavailable"]
            await objects.put("c", b"x")
    assert stored(bucket) == {"c": b"x"}


@pytest.mark.parametrize("named", [False, True])
async def test_an_archive_in_a_folder(tmp_path: Path, named: bool) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    place = tmp_path / "cold" if named else data_dir / "archive"
    async with open_archive(str(place) if named else None, data_dir) as objects:
        assert isinstance(objects, FolderObjects)
        await objects.put("a/b", b"x")
    assert (place / "a" / "b").read_bytes() == b"x"


async def test_a_folder_that_cannot_be_an_archive_is_refused_with_the_remedy(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    (data_dir / "sessions").mkdir(parents=True)
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "link").symlink_to(data_dir)
    for place, match in {
        tmp_path / "file": "cannot be made",
        tmp_path / "not" / "there": "parent folder is not there",
        data_dir: "data folder",
        tmp_path / "link": "data folder",
        data_dir / "sessions": "data folder",
    }.items():
        with pytest.raises(UnusableArchive, match=match):
            async with open_archive(str(place), data_dir):
                pytest.fail(f"{place} was opened")
    async with open_archive(str(data_dir / "archive"), data_dir):
        pass


@pytest.mark.parametrize(
    ("setting", "place"),
    [
        ("s3://bucket", S3Place(bucket="bucket")),
        ("s3://bucket/", S3Place(bucket="bucket")),
        ("s3://my.bucket/a/b/", S3Place(bucket="my.bucket", prefix="a/b")),
        (
            "s3://bucket/a?endpoint=http://127.0.0.1:9000/&region=eu-central-1",
            S3Place(bucket="bucket", prefix="a", endpoint="http://127.0.0.1:9000", region="eu-central-1"),
        ),
        ("s3://bucket?endpoint=https://[::1]:9000", S3Place(bucket="bucket", endpoint="https://[::1]:9000")),
    ],
)
def test_a_bucket_is_read_from_the_setting(setting: str, place: S3Place) -> None:
    assert read_setting(setting, Path("data")) == place


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ("", "neither a folder nor s3://"),
        ("gs://bucket", "neither a folder nor s3://"),
        ("a\0b", "neither a folder nor s3://"),
        ("s3:bucket", "no bucket's name"),
        ("s3://", "no bucket's name"),
        ("s3://a", "no bucket's name"),
        ("s3://bucket/a#b", "no bucket's name"),
        ("s3://bucket/a//b", "the prefix 'a//b'"),
        ("s3://bucket/../b", "the prefix '../b'"),
        ("s3://bucket?endpont=http://x", "no parameter 'endpont'"),
        ("s3://bucket?region=a&region=b", "twice"),
        ("s3://bucket?region", "cannot be read"),
        ("s3://bucket?region=eu%20west", "'eu west' is no region"),
        ("s3://bucket?endpoint=127.0.0.1:9000", "is no URL of a server"),
        ("s3://bucket?endpoint=ftp://x", "is no URL of a server"),
        ("s3://bucket?endpoint=http://x:99999", "is no URL of a server"),
        ("s3://[bucket", "cannot be read"),
    ],
)
def test_a_setting_that_is_none_is_refused_with_the_field_the_cause_and_the_remedy(
    setting: str, match: str
) -> None:
    with pytest.raises(UnusableArchive, match=match) as caught:
        read_setting(setting, Path("data"))
    assert str(caught.value).startswith("archive")


@pytest.mark.parametrize(
    "setting", ["s3://key:hunter2@bucket", "s3://bucket?endpoint=http://key:hunter2@host:x"]
)
def test_credentials_in_the_setting_are_refused_and_not_repeated(setting: str) -> None:
    with pytest.raises(UnusableArchive, match="do not belong there") as caught:
        read_setting(setting, Path("data"))
    assert "hunter2" not in str(caught.value)


async def test_a_missing_object_is_missing_and_no_more(objects: S3Objects, proxy: s3.Proxy) -> None:
    with pytest.raises(ObjectMissing, match=KEY):
        await objects.get(OBJECT)
    assert proxy.seen("GET") == 1
