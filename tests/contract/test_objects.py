"""What every store of objects must do, whatever it is made of."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from sojourn.actors.errors import ObjectExists, ObjectMissing
from sojourn.actors.ports import Objects
from sojourn.runtime.stores.memory import MemoryObjects
from sojourn.runtime.stores.objects_folder import FolderObjects
from tests.support import s3

pytestmark = pytest.mark.anyio

NO_NAMES = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/../b",
    "a b",
    "a\n",
    "ä",
    "a\0",
    "a" * 256,
    "/".join("a" * 9),
    ".tmp-x",
]


@pytest.fixture(scope="module")
def proxy() -> Iterator[s3.Proxy]:
    with s3.serving() as server, s3.proxying(server) as proxy:
        yield proxy


async def names(objects: Objects, prefix: str = "") -> list[str]:
    return [name async for name in objects.list(prefix)]


class ObjectsContract:
    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 5_000])
    async def test_an_object_comes_back_to_the_byte(self, objects: Objects, data: bytes) -> None:
        await objects.put("a/b/c.json", data)
        assert await objects.get("a/b/c.json") == data

    async def test_a_put_replaces(self, objects: Objects) -> None:
        await objects.put("a", b"first, and longer")
        await objects.put("a", b"second")
        assert await objects.get("a") == b"second"

    async def test_a_create_only_put_leaves_what_stands(self, objects: Objects) -> None:
        await objects.put("a/b", b"first", create_only=True)
        with pytest.raises(ObjectExists):
            await objects.put("a/b", b"second", create_only=True)
        assert await objects.get("a/b") == b"first"
        assert await names(objects) == ["a/b"]

    async def test_of_many_create_only_puts_one_succeeds(self, objects: Objects) -> None:
        outcomes: list[bool] = []

        async def put(data: bytes) -> None:
            try:
                await objects.put("a", data, create_only=True)
                outcomes.append(True)
            except ObjectExists:
                outcomes.append(False)

        async with anyio.create_task_group() as tasks:
            for n in range(10):
                tasks.start_soon(put, b"%d" % n)
        assert sorted(outcomes) == [False] * 9 + [True]

    async def test_a_name_that_was_deleted_can_be_created_again(self, objects: Objects) -> None:
        await objects.put("a", b"first", create_only=True)
        await objects.delete("a")
        await objects.put("a", b"second", create_only=True)
        assert await objects.get("a") == b"second"

    async def test_a_reader_sees_one_object_or_the_other_while_it_is_replaced(self, objects: Objects) -> None:
        versions = [bytes([n]) * (300_000 - n) for n in range(4)]
        seen = []

        async def put_all() -> None:
            for version in versions:
                await objects.put("a", version)

        async def read() -> None:
            for _ in range(8):
                seen.append(await objects.get("a"))

        await objects.put("a", versions[0])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(put_all)
            tasks.start_soon(read)
            tasks.start_soon(read)
        assert all(version in versions for version in seen)
        assert await objects.get("a") == versions[-1]

    async def test_objects_that_are_put_together_are_all_there(self, objects: Objects) -> None:
        await objects.put("a/b", b"another")
        await objects.put("a/c", b"c")
        together = [("a/b", b"b"), ("a/c", b"c"), ("a/d/e", b""), ("a/f", b"f" * 100_000)]
        await objects.put_all(together)
        await objects.put_all(together)
        assert [(name, await objects.get(name)) for name in await names(objects)] == together
        await objects.put_all([])

    async def test_a_missing_object_is_named(self, objects: Objects) -> None:
        await objects.put("a/b", b"x")
        for name in ("b", "a", "a/c", "a/b/c"):
            with pytest.raises(ObjectMissing, match=name):
                await objects.get(name)

    async def test_names_are_listed_sorted_below_a_folder(self, objects: Objects) -> None:
        for name in ("b/x", "a/2", "a/10", "a-b/x", "a/c/d", "ab"):
            await objects.put(name, b"")
        assert await names(objects) == ["a-b/x", "a/10", "a/2", "a/c/d", "ab", "b/x"]
        assert await names(objects, "a") == ["a/10", "a/2", "a/c/d"]
        assert await names(objects, "a/c") == ["a/c/d"]
        assert await names(objects, "z") == []
        assert await names(objects, "ab") == []

    async def test_a_deleted_object_is_gone(self, objects: Objects) -> None:
        await objects.put("a/b/c", b"x")
        await objects.put("a/d", b"y")
        await objects.delete("a/b/c")
        await objects.delete("a/b/c")
        await objects.delete("never/there")
        assert await names(objects) == ["a/d"]
        with pytest.raises(ObjectMissing):
            await objects.get("a/b/c")
        await objects.put("a/b/c", b"again")
        assert await objects.get("a/b/c") == b"again"

    async def test_what_is_no_name_is_refused(self, objects: Objects) -> None:
        for name in NO_NAMES:
            with pytest.raises(ValueError, match="no object name"):
                await objects.put(name, b"x")
            with pytest.raises(ValueError, match="no object name"):
                await objects.get(name)
            with pytest.raises(ValueError, match="no object name"):
                await objects.delete(name)
            if name:
                with pytest.raises(ValueError, match="no object name"):
                    await names(objects, name)

    async def test_the_longest_names_are_taken(self, objects: Objects) -> None:
        name = "/".join(["a" * 60] * 7 + ["b" * 200 + ".ndjson.zst"])
        await objects.put(name, b"x")
        assert await names(objects) == [name]


class TestMemoryObjects(ObjectsContract):
    @pytest.fixture
    def objects(self) -> Objects:
        return MemoryObjects()


class TestFolderObjects(ObjectsContract):
    @pytest.fixture
    def objects(self, tmp_path: Path) -> Objects:
        return FolderObjects(tmp_path / "objects")


class TestS3Objects(ObjectsContract):
    @pytest.fixture
    async def objects(self, proxy: s3.Proxy, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Objects]:
        s3.set_credentials(monkeypatch)
        async with s3.opened(proxy, s3.make_bucket(), prefix="below/this") as objects:
            yield objects
