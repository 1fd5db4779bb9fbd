"""A bucket of a server of their own, behind a proxy that can hurt what passes."""

from collections.abc import AsyncIterator, Iterator

import pytest

from sojourn.runtime.stores.objects_s3 import S3Objects
from tests.support import s3


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
