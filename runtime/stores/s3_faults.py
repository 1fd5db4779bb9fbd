"""What the S3 driver and an S3 server say when something goes wrong, as errors of ours: each is translated once, here."""

from botocore.exceptions import (  # type: ignore[import-untyped]
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004 - the driver's
    CredentialRetrievalError,
    EndpointConnectionError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
)
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]

from ...actors.errors import (
    Damaged,
    ObjectMissing,
    StorageFull,
    StoreError,
    StoreUnavailable,
    UnusableArchive,
)

DRIVER_ERRORS = (BotoCoreError, ClientError, ResponseParserError)

RIGHTS = {
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "CompleteMultipartUpload": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "DeleteObject": "s3:DeleteObject",
    "GetObject": "s3:GetObject",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListObjectsV2": "s3:ListBucket",
    "PutObject": "s3:PutObject",
    "UploadPart": "s3:PutObject",
}
CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE for a profile in ~/.aws/credentials or ~/.aws/config, "
    "or run where an instance or container role gives them"
)
_PASSING_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
# What a server answers with another status and means no less passingly. The digests: a request that was hurt on its way.
_PASSING_CODES = frozenset(
    {
        "BadDigest",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)
_OVERTAKEN_CODES = frozenset({"ConditionalRequestConflict", "NoSuchUpload", "PreconditionFailed"})
_NO_ROOM_CODES = frozenset({"QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull"})
_WRONG_CREDENTIALS = frozenset(
    {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "TokenRefreshRequired"}
)
_WRONG_REGION = frozenset(
    {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"}
)


class Overtaken(Exception):
    """A write found the ground changed: an object stands there, or the upload is gone. What stands tells what happened."""


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, ClientError):
        status, code = _answer(error)
        return status in _PASSING_STATUSES or code in _PASSING_CODES
    # A certificate that is not trusted now will not be in a second.
    return isinstance(error, (ConnectionError, HTTPClientError, IncompleteReadError)) and not isinstance(
        error, SSLError
    )


def translated(error: Exception, operation: str, *, place: str, bucket: str, key: str) -> Exception:
    """The error of ours for one of `DRIVER_ERRORS`.

    Args:
        place: the store as people know it, for messages.
    """
    if isinstance(error, ClientError):
        return _of_answer(error, operation, place=place, bucket=bucket, key=key)
    if isinstance(error, FlexibleChecksumError):
        return Damaged(f"what {place} sent of {key} does not carry its checksum ({error})")
    if isinstance(error, (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)):
        return UnusableArchive(f"{place}: there are no credentials for it ({error}); {CREDENTIALS}")
    if isinstance(error, SSLError):
        return StoreUnavailable(
            f"{place} has no certificate that is trusted ({error}); set AWS_CA_BUNDLE to a file of the authority it is from"
        )
    if isinstance(error, EndpointConnectionError):
        return StoreUnavailable(
            f"{place} cannot be reached ({error}); is it running, and is its endpoint right?"
        )
    if isinstance(error, (ConnectionError, HTTPClientError, IncompleteReadError)):
        return StoreUnavailable(
            f"{place} did not answer {operation} of {key} ({error}); the outcome is unknown"
        )
    if isinstance(error, ResponseParserError):
        return StoreUnavailable(
            f"what answers for {place} does not speak S3 ({error}); is its endpoint right?"
        )
    return UnusableArchive(f"{place} cannot be used ({error}); correct the setting archive")


def _answer(error: ClientError) -> tuple[int, str]:
    response = error.response
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0), response.get("Error", {}).get(
        "Code", ""
    )


def _of_answer(error: ClientError, operation: str, *, place: str, bucket: str, key: str) -> Exception:
    status, code = _answer(error)
    said = f"{status} {code}: {error.response.get('Error', {}).get('Message', '')}"
    if status == 412 or code in _OVERTAKEN_CODES:
        return Overtaken(said)
    if code == "NoSuchBucket":
        return UnusableArchive(
            f"{place}: there is no bucket {bucket!r}; make it, or name another one in the setting archive"
        )
    if operation == "GetObject" and (code == "NoSuchKey" or status == 404):
        return ObjectMissing(f"there is no object {key} in {place}")
    if status == 507 or code in _NO_ROOM_CODES:
        return StorageFull(f"no room in {place} ({said}); nothing was written, free some space")
    if code in _WRONG_CREDENTIALS:
        return UnusableArchive(f"{place} does not take these credentials ({said}); {CREDENTIALS}")
    if code == "RequestTimeTooSkewed":
        return UnusableArchive(
            f"{place}: this machine's clock differs from its own too much ({said}); set it"
        )
    if status == 301 or code in _WRONG_REGION:
        return UnusableArchive(
            f"{place} is in another region ({said}); name it: archive = 's3://{bucket}/...?region=REGION'"
        )
    if status in (401, 403):
        missing = RIGHTS[operation]
        # S3 answers so for a missing key too, to those who may not list.
        more = ", and s3:ListBucket on the bucket" if operation == "GetObject" else ""
        return UnusableArchive(f"{place}: {missing} is not granted for {key}{more} ({said}); grant it")
    unknown = "; the outcome is unknown" if status >= 500 else ""
    return StoreUnavailable(f"{place} answered {operation} of {key or 'the bucket'} with {said}{unknown}")


def not_listed(place: str) -> StoreError:
    return StoreUnavailable(
        f"{place} does not list keys whole and sorted, as S3 does; use a general purpose bucket"
    )
