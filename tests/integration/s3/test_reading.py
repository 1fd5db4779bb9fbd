"""Objects out of a bucket, and lists of them."""

import inspect
from collections.abc import Callable

import pytest

from sojourn.actors.errors import (
    Damaged,
    StoreUnavailable,
)
from sojourn.runtime.stores.objects_s3 import S3Objects
from tests.support import s3
from tests.support.s3 import Fault, cuts, flips, says

from .common import KEY, OBJECT, SHORT_TRIES, names, on_both

pytestmark = pytest.mark.anyio


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
