"""Objects in a bucket of S3, or of a server that speaks it.

Every request may be sent again: a part by its number, an object by what it holds, a create-only one because its metadata
says which call wrote it. So a lost answer is asked for again, and a refusal of one's own repetition is no refusal.
The driver's own repetitions and timeouts are off: they are bounded here, where it is known what was sent before.
"""

import base64
import hashlib
import secrets
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Self

import anyio
import anyio.to_thread
import structlog
from aiobotocore.config import AioConfig  # type: ignore[import-untyped]
from aiobotocore.httpxsession import HttpxSession  # type: ignore[import-untyped]
from aiobotocore.session import AioSession  # type: ignore[import-untyped]
from attrs import frozen
from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

from ...actors.errors import (
    Damaged,
    NotOpen,
    ObjectExists,
    ObjectMissing,
    StoreError,
    StoreUnavailable,
    TooLarge,
    UnusableArchive,
)
from ..verified import put_one_by_one
from .object_names import check_name, check_prefix
from .s3_faults import Overtaken, not_listed
from .s3_patience import BYTES_PER_S_MIN, Budget, Patience, Requests

log = structlog.get_logger("sojourn.objects")

PART_BYTES = 8 * 1024 * 1024
ONE_REQUEST_BYTES_MAX = 16 * 1024 * 1024  # what is larger goes in parts: a broken connection costs one part
OBJECT_BYTES_MAX = 512 * 1024 * 1024
KEY_BYTES_MAX = 1_024  # S3's own
PROBES = ".sojourn-probe"
_CONNECTIONS_MAX = 64
_DIGEST_INLINE_BYTES_MAX = 256 * 1024  # takes 0.2 ms; for more, a thread costs less than the loop's pause
_ABORT_S = 10.0
_ROUNDS_MAX = 4
_READS_MAX = 2


@frozen(kw_only=True)
class _Write:
    """One call of `put`. `token` tells its object from the one that another call wrote, be it of the same bytes."""

    key: str
    data: bytes
    token: str
    sha256: str
    create_only: bool
    budget: Budget

    @property
    def metadata(self) -> dict[str, str]:
        return {"sha256": self.sha256, "bytes": str(len(self.data)), "write": self.token}

    @property
    def condition(self) -> dict[str, str]:
        return {"IfNoneMatch": "*"} if self.create_only else {}


class S3Objects:
    """`Objects` in a bucket, below a prefix. Runs on asyncio and on trio, on the event loop it was opened on.

    Durable is S3's 200. An object is seen whole or not at all: it goes as one request, or in parts which become an object at
    once. A writer that is cancelled waits until the request under way is answered, and what it has sent in parts is taken
    back; a reader that is cancelled goes at once. Two writers of one name overwrite each other unless `create_only`.

    Every operation is over by its deadline (`Patience`), and then raises StoreUnavailable; like one that was refused by a
    server in trouble after all its tries, it may have happened. Raises UnusableArchive where the bucket, the credentials or
    a right is missing: then nothing was done.
    """

    def __init__(
        self,
        client: Any,
        context: AbstractAsyncContextManager[Any],
        *,
        bucket: str,
        prefix: str,
        place: str,
        patience: Patience,
        object_bytes_max: int,
    ) -> None:
        self._client = client
        self._context = context
        self._bucket = bucket
        self._prefix = prefix
        self._place = place
        self._requests = Requests(place=place, bucket=bucket, patience=patience)
        self._object_bytes_max = object_bytes_max
        self._uploads: dict[str, str] = {}  # upload id to key: begun, and neither completed nor aborted yet
        self._left: set[str] = set()  # of these, whose write has ended and could not take them back
        self._closed = False

    @classmethod
    async def open(
        cls,
        bucket: str,
        *,
        prefix: str = "",
        endpoint: str | None = None,
        region: str | None = None,
        patience: Patience | None = None,
        object_bytes_max: int = OBJECT_BYTES_MAX,
    ) -> Self:
        """Nothing is asked of the server yet; `probe` does. The credentials are found as the AWS command line finds them.

        Args:
            prefix: the folder in the bucket, without a slash at its end; `""`: the whole bucket.
            endpoint: the server's URL, whose buckets are then named in the path; None: Amazon's.
            region: None: from the environment or the profile, else us-east-1.
            object_bytes_max: a larger object is neither written nor read.

        Raises:
            UnusableArchive: endpoint, region, profile or configuration file cannot be used.
        """
        place = f"archive s3://{bucket}{prefix and '/'}{prefix}" + (f" at {endpoint}" if endpoint else "")
        config = AioConfig(
            http_session_cls=HttpxSession,
            connect_timeout=10,
            read_timeout=None,
            connector_args={"write_timeout": None, "pool_timeout": None},
            max_pool_connections=_CONNECTIONS_MAX,
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_supported",
            response_checksum_validation="when_supported",
            s3={"addressing_style": "path" if endpoint else "auto"},
            warm_up_loader_caches=True,
        )
        try:
            context = AioSession().create_client(
                "s3", endpoint_url=endpoint, region_name=region, config=config
            )
            client = await context.__aenter__()
        except (BotoCoreError, ValueError) as error:
            raise UnusableArchive(
                f"{place} cannot be used ({error}); correct the setting archive, or the AWS configuration"
            ) from error
        return cls(
            client,
            context,
            bucket=bucket,
            prefix=check_prefix(prefix),
            place=place,
            patience=patience or Patience(),
            object_bytes_max=object_bytes_max,
        )

    async def close(self) -> None:
        """Takes back what is left of broken uploads, and closes the connections. Again: nothing happens."""
        if self._closed:
            return
        self._closed = True
        with anyio.CancelScope(shield=True):
            try:
                self._left.update(self._uploads)
                await self._abort_leftovers()
            finally:
                await self._context.__aexit__(None, None, None)

    async def probe(self, *, within_s: float = 10.0) -> None:
        """Whether the bucket can be listed, written, created in, read and deleted from, by a tiny object that goes again.

        Raises:
            UnusableArchive: no. It names the bucket, the right or the credentials that are missing, or says that the server
                lets a create-only write replace an object.
            StoreUnavailable: the server was not reached within `within_s` seconds, or is in trouble.
        """
        self._check_open()
        name = f"{PROBES}/{secrets.token_hex(8)}"
        budget = Budget(within_s)
        await self._page(self._key(PROBES) + "/", None, budget)
        write = self._write(name, secrets.token_bytes(16), create_only=True, budget=budget)
        await self._put(write)
        again = self._write(name, secrets.token_bytes(16), create_only=True, budget=budget)
        try:
            await self._put(again)
        except ObjectExists:
            pass
        else:
            raise UnusableArchive(
                f"{self._place} lets a create-only write replace an object (it does not heed If-None-Match); "
                "use a server that does"
            )
        try:
            await self._read(self._key(name), budget, token=write.token)
        except (Damaged, ObjectMissing, _Anothers) as error:
            raise UnusableArchive(f"{self._place} does not give back what was written ({error})") from error
        await self._delete(self._key(name), budget)

    async def put(self, name: str, data: bytes, *, create_only: bool = False) -> None:
        """As the port says; raises TooLarge for more than `object_bytes_max`, and then nothing was written."""
        check_name(name)
        self._check_open()
        if len(data) > self._object_bytes_max:
            raise TooLarge(f"object {name}", self._object_bytes_max)
        budget = self._requests.budget(len(data))
        sha256 = await _digest(data)
        await self._put(self._write(name, data, create_only=create_only, budget=budget, sha256=sha256))

    async def put_all(self, objects: Sequence[tuple[str, bytes]]) -> None:
        """As the port says."""
        await put_one_by_one(self, objects)

    async def get(self, name: str) -> bytes:
        """As the port says. Raises Damaged where it does not carry the length or checksum it was written with."""
        key = self._key(name)
        self._check_open()
        return await self._read(key, self._requests.budget())

    async def list(self, prefix: str) -> AsyncIterator[str]:
        """As the port says; a page of 1,000 at a time is held. What was put or deleted meanwhile may be among them or not."""
        start = self._prefix + check_prefix(prefix)
        token: str | None = None
        last: str | None = None
        while True:
            self._check_open()
            page = await self._page(start, token, self._requests.budget())
            for entry in page.get("Contents", ()):
                name = entry["Key"].removeprefix(self._prefix)
                if last is not None and name <= last:
                    raise not_listed(self._place)
                last = name
                if _is_name(name):
                    yield name
            if page.get("IsTruncated") is False:
                return
            token = page.get("NextContinuationToken")
            if token is None:  # S3 says one or the other, and a web page neither
                raise not_listed(self._place)

    async def delete(self, name: str) -> None:
        key = self._key(name)
        self._check_open()
        await self._delete(key, self._requests.budget())

    async def sweep(self, before: datetime) -> int:
        """Removes what writers that are gone left behind, uploads and probes begun before then, and says how many.

        Other writers may be at work here meanwhile, none of whose writes takes as long.
        """
        self._check_open()
        swept = 0
        marker: dict[str, str] = {}
        while True:
            page = await self._uploads_page(marker)
            for upload in page.get("Uploads", ()):
                if upload["Initiated"] < before and upload["UploadId"] not in self._uploads:
                    self._uploads[upload["UploadId"]] = upload["Key"]
                    swept += await self._abort(upload["UploadId"])
            if not page.get("IsTruncated"):
                break
            marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
        probes = await self._page(self._key(PROBES) + "/", None, self._requests.budget())
        for entry in probes.get("Contents", ()):
            if entry["LastModified"] < before:
                await self._delete(entry["Key"], self._requests.budget())
                swept += 1
        return swept

    # -- writing -------------------------------------------------------------------------------------------------------

    def _write(
        self, name: str, data: bytes, *, create_only: bool, budget: Budget, sha256: str | None = None
    ) -> _Write:
        return _Write(
            key=self._key(name),
            data=data,
            token=secrets.token_hex(16),
            sha256=sha256 or hashlib.sha256(data).hexdigest(),
            create_only=create_only,
            budget=budget,
        )

    async def _put(self, write: _Write) -> None:
        for _ in range(_ROUNDS_MAX):
            try:
                if len(write.data) > ONE_REQUEST_BYTES_MAX:
                    await self._put_in_parts(write)
                else:
                    await self._put_whole(write)
                return
            except Overtaken:
                stands = await self._whose(write)
            if stands is True:  # an answer was lost, and this is what the repetition found
                return
            if stands is False and write.create_only:
                raise ObjectExists(
                    f"there is an object {write.key} in {self._place} already; nothing was written"
                )
        raise StoreUnavailable(
            f"{self._place}: {write.key} was written by others at the same time, {_ROUNDS_MAX} times over; write it again"
        )

    async def _put_whole(self, write: _Write) -> None:
        async def call(_: anyio.CancelScope) -> None:
            await self._client.put_object(
                Bucket=self._bucket,
                Key=write.key,
                Body=write.data,
                ChecksumCRC32=_crc32(write.data),
                Metadata=write.metadata,
                **write.condition,
            )

        await self._requests.repeat(
            "PutObject", write.key, call, write.budget, shield=True, size_bytes=len(write.data)
        )

    async def _put_in_parts(self, write: _Write) -> None:
        await self._abort_leftovers()

        async def begin(_: anyio.CancelScope) -> str:
            answer = await self._client.create_multipart_upload(
                Bucket=self._bucket, Key=write.key, ChecksumAlgorithm="CRC32", Metadata=write.metadata
            )
            upload_id = str(answer["UploadId"])
            self._uploads[upload_id] = write.key
            return upload_id

        upload_id = await self._requests.repeat(
            "CreateMultipartUpload", write.key, begin, write.budget, shield=True
        )
        completed = False
        try:
            parts = [
                await self._put_part(write, upload_id, number, write.data[start : start + PART_BYTES])
                for number, start in enumerate(range(0, len(write.data), PART_BYTES), 1)
            ]

            async def complete(_: anyio.CancelScope) -> None:
                await self._client.complete_multipart_upload(
                    Bucket=self._bucket,
                    Key=write.key,
                    UploadId=upload_id,
                    MultipartUpload={"Parts": parts},
                    **write.condition,
                )

            await self._requests.repeat(
                "CompleteMultipartUpload", write.key, complete, write.budget, shield=True
            )
            del self._uploads[upload_id]
            completed = True
        finally:
            if not completed:
                await self._abort(upload_id)

    async def _put_part(self, write: _Write, upload_id: str, number: int, part: bytes) -> dict[str, Any]:
        checksum = _crc32(part)

        async def call(_: anyio.CancelScope) -> dict[str, Any]:
            answer = await self._client.upload_part(
                Bucket=self._bucket,
                Key=write.key,
                UploadId=upload_id,
                PartNumber=number,
                Body=part,
                ChecksumCRC32=checksum,
            )
            return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": checksum}

        return await self._requests.repeat(
            "UploadPart", write.key, call, write.budget, shield=True, size_bytes=len(part)
        )

    async def _whose(self, write: _Write) -> bool | None:
        """Who wrote what stands at the key: this call, another one (False), or nobody."""
        try:
            found = await self._read(write.key, write.budget, token=write.token)
        except ObjectMissing:
            return None
        except _Anothers:
            return False
        if found != write.data:
            raise Damaged(f"{write.key} in {self._place} does not hold what was written there")
        return True

    async def _abort_leftovers(self) -> None:
        for upload_id in list(self._left):
            await self._abort(upload_id)

    async def _abort(self, upload_id: str) -> bool:
        """False: it stays known, and is tried again with the next object that goes in parts, and at closing."""
        key = self._uploads.get(upload_id)
        if key is None:  # another writer was at it too
            return True

        async def call(_: anyio.CancelScope) -> None:
            await self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload_id)

        with anyio.CancelScope(shield=True):
            budget = Budget(min(_ABORT_S, self._requests.patience.deadline_s))
            try:
                await self._requests.repeat("AbortMultipartUpload", key, call, budget)
            except Overtaken:  # it has become the object after all, or is gone
                pass
            except StoreError as error:
                self._left.add(upload_id)
                log.warning(
                    "objects.upload_left",
                    key=key,
                    upload_id=upload_id,
                    error=str(error),
                    remedy="none is needed: it is aborted later",
                )
                return False
        self._uploads.pop(upload_id, None)
        self._left.discard(upload_id)
        return True

    async def _delete(self, key: str, budget: Budget) -> None:
        async def call(_: anyio.CancelScope) -> None:
            await self._client.delete_object(Bucket=self._bucket, Key=key)

        await self._requests.repeat("DeleteObject", key, call, budget, shield=True)

    # -- reading -------------------------------------------------------------------------------------------------------

    async def _read(self, key: str, budget: Budget, *, token: str | None = None) -> bytes:
        """The object, whole and as it was written. With `token`, raises _Anothers where another write made it."""

        async def call(scope: anyio.CancelScope) -> bytes:
            return await self._fetch(key, budget, scope, token)

        damage: Damaged | None = None
        for _ in range(_READS_MAX):  # bytes are flipped on their way as well as where they lie
            try:
                return await self._requests.repeat("GetObject", key, call, budget)
            except Damaged as error:
                damage = error
        assert damage is not None
        raise damage

    async def _fetch(self, key: str, budget: Budget, scope: anyio.CancelScope, token: str | None) -> bytes:
        answer = await self._client.get_object(Bucket=self._bucket, Key=key)
        async with answer["Body"] as body:
            metadata = answer.get("Metadata", {})
            if token is not None and metadata.get("write") != token:
                raise _Anothers
            length = answer.get("ContentLength")
            if str(length) != metadata.get("bytes") or "sha256" not in metadata:
                raise Damaged(
                    f"{key} in {self._place} has {length} bytes and was written with {metadata.get('bytes')}; "
                    "was it put or copied there by something that does not keep its metadata?"
                )
            if length > self._object_bytes_max:
                raise Damaged(
                    f"{key} in {self._place} has {length:,} bytes, over the limit of {self._object_bytes_max:,}"
                )
            budget.size_bytes = max(budget.size_bytes, length)
            scope.deadline = min(scope.deadline + length / BYTES_PER_S_MIN, budget.ends_at_s)
            data: bytes = await body.read()
        if len(data) != length or await _digest(data) != metadata["sha256"]:
            raise Damaged(f"{key} in {self._place} does not carry the checksum it was written with")
        return data

    async def _page(self, start: str, token: str | None, budget: Budget) -> dict[str, Any]:
        async def call(_: anyio.CancelScope) -> dict[str, Any]:
            further = {} if token is None else {"ContinuationToken": token}
            page: dict[str, Any] = await self._client.list_objects_v2(
                Bucket=self._bucket, Prefix=start, **further
            )
            return page

        return await self._requests.repeat("ListObjectsV2", start, call, budget)

    async def _uploads_page(self, marker: dict[str, str]) -> dict[str, Any]:
        async def call(_: anyio.CancelScope) -> dict[str, Any]:
            page: dict[str, Any] = await self._client.list_multipart_uploads(
                Bucket=self._bucket, Prefix=self._prefix, **marker
            )
            return page

        return await self._requests.repeat(
            "ListMultipartUploads", self._prefix, call, self._requests.budget()
        )

    def _key(self, name: str) -> str:
        key = self._prefix + check_name(name)
        if len(key) > KEY_BYTES_MAX:
            raise ValueError(
                f"{name!r} is no object name here: with its prefix it is over S3's {KEY_BYTES_MAX:,} bytes"
            )
        return key

    def _check_open(self) -> None:
        if self._closed:
            raise NotOpen(f"{self._place} is closed; nothing was done")


class _Anothers(Exception):
    """Another write made the object that stands there."""


def _is_name(name: str) -> bool:
    """Whether a key below the prefix is an object of ours: no probe, and nothing that a console or another tool left."""
    try:
        return not check_name(name).startswith(f"{PROBES}/")
    except ValueError:
        return False


def _crc32(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


async def _digest(data: bytes) -> str:
    if len(data) <= _DIGEST_INLINE_BYTES_MAX:
        return hashlib.sha256(data).hexdigest()
    return await anyio.to_thread.run_sync(lambda: hashlib.sha256(data).hexdigest())
