"""The one table from what the client and its connections raise to the port's errors."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from http.client import BadStatusLine, RemoteDisconnected
from xml.etree.ElementTree import ParseError

from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3.exceptions import HTTPError, MaxRetryError, ProtocolError, SSLError

from distroml.objectstore.port import (
    NoSuchObject,
    ObjectDamaged,
    ObjectStoreDown,
    ObjectStoreError,
    ObjectStoreFull,
    ObjectStoreRefused,
)
from distroml.objectstore.s3.settings import S3Settings

_CREDENTIALS = frozenset(
    {
        *("AccessDenied", "AccountProblem", "AllAccessDisabled", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken"),
        *("InvalidTokenId", "NotSignedUp", "SignatureDoesNotMatch", "XMinioInvalidAccessKeyId"),
    }
)
_FULL = frozenset(
    {
        *("EntityTooLarge", "InsufficientStorage", "QuotaExceeded", "XMinioAdminBucketQuotaExceeded"),
        *("XMinioDiskFull", "XMinioStorageFull"),
    }
)
_DAMAGED = frozenset({"BadDigest", "IncompleteBody", "InvalidDigest", "XAmzContentSHA256Mismatch"})
_INSUFFICIENT_STORAGE = 507
_SERVER_ERROR = 500


@contextmanager
def translated(settings: S3Settings, key: str) -> Generator[None]:
    """Raise the port's error for what the client raised inside the block."""
    try:
        yield
    except ObjectStoreError:
        raise
    except (MinioException, HTTPError) as error:
        raise translate(error, settings, key) from error
    except ParseError as error:
        raise _no_s3(settings, "what is no XML") from error


def translate(error: MinioException | HTTPError, settings: S3Settings, key: str) -> ObjectStoreError:
    """What it means for the object `key`, or for the bucket where that is empty."""
    what = f"{key!r} in {settings.place}" if key else settings.place
    match error:
        case S3Error():
            return _answered(error, settings, key, what)
        case InvalidResponseError() | ServerError():
            status = error.status_code if isinstance(error, ServerError) else _status(error)
            if status == _INSUFFICIENT_STORAGE:
                return ObjectStoreFull(f"no room for {what} (HTTP {status}); nothing was written under it")
            if status >= _SERVER_ERROR:
                return ObjectStoreDown(f"{what}: the server failed with HTTP {status}")
            return _no_s3(settings, f"HTTP {status}")
        case MaxRetryError() if error.reason is not None:
            return _unanswered(error.reason, settings, what)
        case _:
            return _unanswered(error, settings, what)


def _no_s3(settings: S3Settings, said: str) -> ObjectStoreRefused:
    return ObjectStoreRefused(
        f"{settings.endpoint} answers {said}, but not as S3 does: is the endpoint the S3 server's? AWS_ENDPOINT_URL_S3 "
        "says which is used"
    )


def _answered(error: S3Error, settings: S3Settings, key: str, what: str) -> ObjectStoreError:
    said = f"{error.code}: {error.message}"
    if error.code == "NoSuchKey" and key:
        return NoSuchObject(key)
    if error.code == "RequestTimeTooSkewed":
        return ObjectStoreRefused(f"{settings.endpoint} refuses our requests: {_clocks(error)}; set the clocks")
    if error.code in _CREDENTIALS:
        return ObjectStoreRefused(
            f"{what}: the server does not let us ({said}); check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the "
            "profile in ~/.aws/credentials, and what that user may do with the bucket"
        )
    if error.code == "AuthorizationHeaderMalformed":
        return ObjectStoreRefused(f"{settings.place}: {said}; AWS_REGION says which region is used: {settings.region}")
    if error.code == "NoSuchBucket":
        return ObjectStoreRefused(f"there is no bucket {settings.bucket!r} at {settings.endpoint}; make it")
    if error.code in _FULL or error.response.status == _INSUFFICIENT_STORAGE:
        return ObjectStoreFull(f"no room for {what} ({said}); nothing was written under it")
    if error.code in _DAMAGED:
        return ObjectDamaged(f"{what} was damaged on its way to the server ({said}); nothing was written under it")
    return ObjectStoreDown(f"{what}: {said}")


def _status(error: InvalidResponseError) -> int:
    # The client has no public name for it; what an exception is pickled by is one.
    return error.__reduce__()[1][0]


def _clocks(error: S3Error) -> str:
    date = error.response.headers.get("Date")
    if date is None:
        return f"our clock and the server's are too far apart ({error.message})"
    minutes = (time.time() - parsedate_to_datetime(date).timestamp()) / 60
    return f"our clock is {abs(minutes):.0f} minutes {'ahead of' if minutes > 0 else 'behind'} the server's"


def _unanswered(error: Exception, settings: S3Settings, what: str) -> ObjectStoreError:
    if isinstance(error, SSLError):
        return ObjectStoreRefused(
            f"no secure connection to {settings.endpoint}: {error}; is it http:// in truth, or a certificate of an "
            "authority that AWS_CA_BUNDLE should name?"
        )
    cause = error.args[1] if isinstance(error, ProtocolError) and len(error.args) > 1 else None
    if isinstance(cause, BadStatusLine) and not isinstance(cause, RemoteDisconnected):
        return ObjectStoreRefused(
            f"what listens at {settings.endpoint} speaks no HTTP (it said {str(cause)[:60]!r}): AWS_ENDPOINT_URL_S3 "
            "says which endpoint is used, and is http:// where it should be https://?"
        )
    return ObjectStoreDown(f"{what}: no answer: {error}")
