"""A job's code: fetched once, checked, unpacked for each attempt."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from grpc.aio import Channel

from distroml.agent.adapters.streams import heed_cancellation
from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.api.scheduler.v1.jobs_pb2_grpc import JobServiceStub
from distroml.bundle import BundleError, unpack
from distroml.observability import logger
from distroml.rpc import Backoff, RemoteError

if TYPE_CHECKING:
    from distroml.api.scheduler.v1.jobs_pb2_grpc import JobServiceAsyncStub

log = logger(__name__)

MAX_ARCHIVE_BYTES = 256 << 20


class CodeUnavailable(Exception):
    """The code cannot be had, now or ever; the text says why."""


class Bundles:
    """Archives in `folder`, named by their hash."""

    def __init__(self, channel: Channel, folder: Path) -> None:
        self._stub = cast("JobServiceAsyncStub", JobServiceStub(channel))
        self._folder = folder
        self._fetching: dict[str, asyncio.Lock] = {}

    async def unpack(self, sha256: str, destination: Path) -> None:
        """Have the bundle's content in `destination`. Waits for as long as the scheduler is away.

        Raises:
            CodeUnavailable: there is no such bundle, or its bytes cannot be trusted.
        """
        if destination.exists():
            return
        async with self._fetching.setdefault(sha256, asyncio.Lock()):
            archive = await self._archive(sha256)
            try:
                await asyncio.to_thread(unpack, archive, destination, sha256=sha256)
            except BundleError as error:
                archive.unlink(missing_ok=True)
                raise CodeUnavailable(str(error)) from error

    async def _archive(self, sha256: str) -> Path:
        archive = self._folder / f"{sha256}.tar.gz"
        if archive.exists():
            return archive
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = archive.with_suffix(f".{os.getpid()}.part")
        backoff = Backoff(0.2, 5.0)
        while True:
            try:
                size = 0
                with partial.open("wb") as file:
                    async for piece in self._stub.GetBundle(pb.GetBundleRequest(sha256=sha256)):
                        size += len(piece.data)
                        if size > MAX_ARCHIVE_BYTES:
                            raise CodeUnavailable(f"bundle {sha256[:12]}… is larger than {MAX_ARCHIVE_BYTES} bytes")
                        file.write(piece.data)
                partial.rename(archive)
                return archive
            except RemoteError as error:
                heed_cancellation()
                if not error.is_transient:
                    raise CodeUnavailable(f"cannot fetch bundle {sha256[:12]}…: {error.message}") from error
                log.info("cannot fetch the code yet; trying again", bundle=sha256[:12], error=str(error))
            except OSError as error:
                raise CodeUnavailable(f"cannot store bundle {sha256[:12]}…: {error}; free some space") from error
            finally:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
            await backoff.wait()
