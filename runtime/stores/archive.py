"""Which store the setting `archive` names."""

import os
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import anyio
import structlog
from attrs import frozen

from ...actors.errors import StoreUnavailable, UnusableArchive
from ...actors.ports import Objects
from .object_names import check_prefix
from .objects_folder import FolderObjects

log = structlog.get_logger("sojourn.archive")

FOLDER = "archive"
_SHAPE = "s3://BUCKET/PREFIX?endpoint=http://127.0.0.1:9000&region=REGION"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_REGION = re.compile(r"[A-Za-z0-9-]{1,63}")


@frozen(kw_only=True)
class S3Place:
    """What `s3://bucket/prefix?endpoint=...&region=...` says. `prefix` has no slash at its ends."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None


@asynccontextmanager
async def open_archive(setting: str | None, data_dir: Path) -> AsyncIterator[Objects]:
    """The archive's objects, until the block ends.

    A bucket whose server is away at the moment is an archive all the same: that is logged, and whatever asks it raises
    StoreUnavailable until the server is back. A session is not kept from running by where it will lie one day.

    Args:
        setting: None: the folder `archive` in the data folder. A path: that folder; it is made where its parent is there.
            `s3://bucket/prefix`: a bucket, with `endpoint` and `region` as parameters where it is not Amazon's.

    Raises:
        UnusableArchive: the setting cannot be read, or what it names cannot be listed, written, read and deleted from. The
            message names the cause and the remedy.
    """
    place = read_setting(setting, data_dir)
    if isinstance(place, Path):
        if setting is not None:
            _check_folder(place)
        folder = FolderObjects(place)
        try:
            yield folder
        finally:
            await folder.close()
        return
    # Importing the driver takes half a second, which only those pay who use it.
    from .objects_s3 import S3Objects

    objects = await S3Objects.open(
        place.bucket, prefix=place.prefix, endpoint=place.endpoint, region=place.region
    )
    try:
        try:
            await objects.probe()
        except StoreUnavailable as error:
            log.warning(
                "archive.unavailable",
                archive=setting,
                error=str(error),
                remedy="none is needed if it comes back; until then what is archived cannot be read",
            )
        yield objects
    finally:
        await objects.close()


@asynccontextmanager
async def archive_to_read(setting: str | None, data_dir: Path) -> AsyncIterator[Objects]:
    """The same to be read from, until the block ends: nothing is tried out or made, and a bucket is opened when something
    is first asked of it. Raises UnusableArchive for a setting that cannot be read."""
    place = read_setting(setting, data_dir)
    if isinstance(place, Path):
        folder = FolderObjects(place)
        try:
            yield folder
        finally:
            await folder.close()
        return
    async with AsyncExitStack() as stack:
        yield _LateBucket(place, stack)


class _LateBucket:
    """A bucket that is opened at its first use: the driver takes half a second that few readers need."""

    def __init__(self, place: S3Place, stack: AsyncExitStack) -> None:
        self._place = place
        self._stack = stack
        self._opened: Objects | None = None
        self._opening = anyio.Lock()

    async def put(self, name: str, data: bytes, *, create_only: bool = False) -> None:
        raise UnusableArchive(f"the archive {self._place.bucket} was opened to be read only")

    async def put_all(self, objects: Sequence[tuple[str, bytes]]) -> None:
        raise UnusableArchive(f"the archive {self._place.bucket} was opened to be read only")

    async def get(self, name: str) -> bytes:
        return await (await self._objects()).get(name)

    async def list(self, prefix: str) -> AsyncIterator[str]:
        async for name in (await self._objects()).list(prefix):
            yield name

    async def delete(self, name: str) -> None:
        raise UnusableArchive(f"the archive {self._place.bucket} was opened to be read only")

    async def _objects(self) -> Objects:
        async with self._opening:
            if self._opened is None:
                from .objects_s3 import S3Objects

                place = self._place
                objects = await S3Objects.open(
                    place.bucket, prefix=place.prefix, endpoint=place.endpoint, region=place.region
                )
                self._stack.push_async_callback(objects.close)
                self._opened = objects
            return self._opened


def read_setting(setting: str | None, data_dir: Path) -> Path | S3Place:
    """Where the setting `archive` says the archive is. Looks at nothing but the text, and whether a folder is the data
    folder.

    Raises:
        UnusableArchive: it says nothing that can be.
    """
    if setting is None:
        return data_dir / FOLDER
    if setting.startswith("s3:"):
        return _read_s3(setting)
    if not setting or "\0" in setting or _SCHEME.match(setting):
        raise UnusableArchive(f"archive = {setting!r}: this is neither a folder nor {_SHAPE}")
    folder = Path(setting)
    data, named = data_dir.resolve(), folder.resolve()
    # Both stores name their objects alike: in one folder, what leaves the one would leave the other.
    if named == data or (data in named.parents and named.relative_to(data).parts[0] != FOLDER):
        raise UnusableArchive(
            f"archive = {setting!r}: this is the data folder {data_dir}, or a folder of its own; name one outside it"
        )
    return folder


def _read_s3(setting: str) -> S3Place:
    if "@" in setting:  # and it is not repeated here
        raise UnusableArchive(
            "archive: credentials do not belong there, where they would be logged; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    try:
        url = urlsplit(setting)
        parameters = parse_qsl(url.query, keep_blank_values=True, strict_parsing=bool(url.query))
    except ValueError as error:
        raise UnusableArchive(
            f"archive = {setting!r}: it cannot be read ({error}); write {_SHAPE}"
        ) from error
    if not setting.startswith("s3://") or url.fragment or not _BUCKET.fullmatch(url.netloc):
        raise UnusableArchive(f"archive = {setting!r}: {url.netloc!r} is no bucket's name; write {_SHAPE}")
    if unknown := sorted({name for name, _ in parameters} - {"endpoint", "region"}):
        raise UnusableArchive(
            f"archive = {setting!r}: there is no parameter {unknown[0]!r}; it may have endpoint and region"
        )
    named = dict(parameters)
    if len(named) != len(parameters):
        raise UnusableArchive(f"archive = {setting!r}: a parameter stands there twice; leave one")
    prefix = url.path.strip("/")
    try:
        check_prefix(prefix)
    except ValueError as error:
        raise UnusableArchive(
            f"archive = {setting!r}: the prefix {prefix!r} has to be 1 to 8 parts of [A-Za-z0-9._-], not . or .."
        ) from error
    region = named.get("region")
    if region is not None and not _REGION.fullmatch(region):
        raise UnusableArchive(
            f"archive = {setting!r}: {region!r} is no region; write one as eu-central-1, or none"
        )
    return S3Place(
        bucket=url.netloc, prefix=prefix, endpoint=_read_endpoint(named.get("endpoint")), region=region
    )


def _read_endpoint(endpoint: str | None) -> str | None:
    if endpoint is None:
        return None
    try:
        url = urlsplit(endpoint)
        is_server = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        is_server = False
    if not is_server or url.query or url.fragment:
        raise UnusableArchive(
            f"archive: its endpoint {endpoint!r} is no URL of a server; write http://HOST:PORT"
        )
    return endpoint.rstrip("/")


def _check_folder(folder: Path) -> None:
    """Raises UnusableArchive where objects cannot be written below it. It is made, and nothing else is."""
    remedy = "make it writable, or name another folder in the setting archive"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError as error:
        raise UnusableArchive(
            f"archive {folder}: its parent folder is not there; make it, or mount what holds it"
        ) from error
    except OSError as error:
        raise UnusableArchive(f"archive {folder} cannot be made ({error.strerror}); {remedy}") from error
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise UnusableArchive(f"archive {folder} cannot be written; {remedy}")
