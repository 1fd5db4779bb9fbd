"""What servers, rights and settings do wrong, and what is said of it."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import (  # type: ignore[import-untyped]
    FlexibleChecksumError,
    ParamValidationError,
    SSLError,
)
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]

from sojourn.actors.errors import (
    Damaged,
    NotOpen,
    StorageFull,
    StoreError,
    StoreUnavailable,
    UnusableArchive,
)
from sojourn.runtime.stores.objects_s3 import S3Objects
from sojourn.runtime.stores.s3_faults import may_pass, translated
from tests.support import s3
from tests.support.s3 import Fault, says, stored

from .common import OBJECT, names, on_both

pytestmark = pytest.mark.anyio


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
