"""An archive is opened: its setting is read, its place is probed."""

from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
import structlog

from sojourn.actors.errors import (
    NotOpen,
    ObjectMissing,
    StoreUnavailable,
    UnusableArchive,
)
from sojourn.runtime.stores.archive import S3Place, open_archive, read_setting
from sojourn.runtime.stores.objects_folder import FolderObjects
from sojourn.runtime.stores.objects_s3 import S3Objects
from tests.support import s3
from tests.support.s3 import Fault, says, stored

from .common import KEY, OBJECT, on_both

pytestmark = pytest.mark.anyio


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
