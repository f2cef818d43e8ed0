"""One object on its way out of the bucket: taken up again where a connection breaks, and checked at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from minio.error import S3Error
from urllib3.exceptions import HTTPError

from distroml.objectstore.port import ObjectDamaged, ObjectStoreDown
from distroml.objectstore.s3 import checksum
from distroml.objectstore.s3.client import S3Client

_TRIES = 4


def read(client: S3Client, name: str, key: str, offset: int, length: int | None) -> bytes:
    """Bytes from `offset` on, none past the end; raises what the client raises, and `ObjectDamaged`.

    The sum of the whole object is known, so only a whole one is checked; who reads a range knows what should be in it.
    """
    headers = {} if not offset and length is None else {"Range": _range(offset, length)}
    for left in reversed(range(_TRIES)):
        try:
            answer = client.get(name, headers)
        except S3Error as error:
            if error.code == "InvalidRange":
                return b""
            raise
        try:
            content = answer.read()
        except HTTPError:
            # Half an answer: its connection is of no further use.
            answer.close()
            if not left:
                raise
            continue
        finally:
            answer.release_conn()
        if not headers:
            _check(key, answer.headers, checksum.checksum(content))
        return content
    raise AssertionError("the last try returns or raises")


def stream(client: S3Client, name: str, key: str, block_bytes: int) -> Iterator[bytes]:
    """The whole object in blocks; raises what the client raises, and `ObjectDamaged` after the last block.

    A connection that breaks is opened again where it broke, at the same version of the object.
    """
    position, crc, left = 0, 0, _TRIES
    headers: dict[str, str] = {}
    whole: Mapping[str, str] = {}
    while True:
        try:
            answer = client.get(name, headers)
        except S3Error as error:
            if error.code == "PreconditionFailed":
                raise ObjectStoreDown(f"{key!r} was replaced while it was read, and the connection broke") from error
            raise
        if not headers:
            headers, whole = {"If-Match": answer.headers["etag"]}, answer.headers
        try:
            while block := answer.read(block_bytes):
                crc = checksum.checksum(block, crc)
                position += len(block)
                yield block
            break
        except HTTPError:
            answer.close()
            left -= 1
            if not left:
                raise
        finally:
            # Also where the reader stops in between: closed, unless it was read to its end.
            answer.close()
        headers["Range"] = _range(position, None)
    _check(key, whole, crc)


def _check(key: str, headers: Mapping[str, str], crc: int) -> None:
    expected = checksum.stored(headers)
    if expected is not None and expected != crc:
        raise ObjectDamaged(f"{key!r}: what was read has the CRC-32 {crc:08x}, what was written had {expected:08x}")


def _range(offset: int, length: int | None) -> str:
    return f"bytes={offset}-" if length is None else f"bytes={offset}-{offset + length - 1}"
