"""Code bundles: stored once under the hash of their bytes."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from tempfile import TemporaryFile
from typing import BinaryIO, Final, cast

from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.objectstore import NoSuchObject, ObjectExists, ObjectStore
from distroml.rpc import errors

BLOCK_BYTES: Final = 1 << 20
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def bundle_key(sha256: str) -> str:
    """Where a bundle is in the object store."""
    return f"bundles/{sha256}"


async def bundle_exists(objects: ObjectStore, sha256: str) -> bool:
    """Whether the bundle is stored."""
    return await asyncio.to_thread(objects.head, bundle_key(sha256)) is not None


async def put_bundle(
    objects: ObjectStore, requests: AsyncIterable[pb.PutBundleRequest], *, cap_bytes: int
) -> pb.PutBundleResponse:
    """Store a bundle whose first message names hash and size; nothing is stored unless both turn out right."""
    messages = aiter(requests)
    first = await anext(messages, None)
    if first is None:
        raise errors.InvalidArgument([("sha256", "no message came; the first one names the bundle's hash and size")])
    sha256, size = first.sha256, first.size_bytes
    _check_sha256(sha256)
    if size < 1:
        raise errors.InvalidArgument([("size_bytes", f"is {size}; the first message says how many bytes will come")])
    if size > cap_bytes:
        raise _too_large(size, cap_bytes)
    if await bundle_exists(objects, sha256):
        return pb.PutBundleResponse(sha256=sha256, existed=True)
    with TemporaryFile() as file:
        digest, received = hashlib.sha256(), 0
        message: pb.PutBundleRequest | None = first
        while message is not None:
            received += len(message.data)
            if received > size:
                break
            digest.update(message.data)
            await asyncio.to_thread(file.write, message.data)
            message = await anext(messages, None)
        if received != size or digest.hexdigest() != sha256:
            text = (
                f"the bundle was announced as {size} bytes with sha256 {sha256}, but {received} bytes "
                f"with {digest.hexdigest()} came; it was not stored, send it again"
            )
            raise errors.InvalidArgument([("data", text)], reason="BundleDamaged")
        file.seek(0)
        try:
            await asyncio.to_thread(objects.put, bundle_key(sha256), cast(BinaryIO, file), if_absent=True)
        except ObjectExists:
            return pb.PutBundleResponse(sha256=sha256, existed=True)
    return pb.PutBundleResponse(sha256=sha256, existed=False)


async def get_bundle(objects: ObjectStore, sha256: str) -> AsyncIterator[pb.GetBundleResponse]:
    """A stored bundle in blocks."""
    _check_sha256(sha256)
    blocks: Iterator[bytes] = iter(objects.stream(bundle_key(sha256), block=BLOCK_BYTES))
    while True:
        try:
            block = await asyncio.to_thread(next, blocks, None)
        except NoSuchObject:
            text = f"bundle {sha256} is not stored here; submit the job again from where its code is"
            raise errors.NotFound("NoSuchBundle", text, sha256=sha256) from None
        if block is None:
            return
        yield pb.GetBundleResponse(data=block)


def _check_sha256(sha256: str) -> None:
    if not _SHA256.fullmatch(sha256):
        raise errors.InvalidArgument([("sha256", f"{sha256[:80]!r} is no sha256 in 64 lower case hex digits")])


def _too_large(size: int, cap_bytes: int) -> errors.CallError:
    text = (
        f"the bundle has {size} bytes, at most {cap_bytes} are taken; leave data and build outputs out of it by "
        "listing them in .distromlignore"
    )
    return errors.ResourceExhausted("BundleTooLarge", text, size_bytes=str(size), cap_bytes=str(cap_bytes))
