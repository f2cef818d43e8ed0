"""The requests of S3 that the store makes, through the `minio` client: signed, sent again where they failed, checked.

A body is protected on its way by what its signature covers: its SHA-256, or over TLS its MD5; the server refuses any
other. Every request goes through the client's `_execute`, for its public methods know no conditional put.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import cast
from xml.etree import ElementTree

import certifi
from minio import Minio
from minio.datatypes import Object
from minio.error import S3Error
from minio.xml import Element, SubElement, findtext, getbytes
from urllib3 import BaseHTTPResponse, PoolManager, Retry, Timeout

from distroml.objectstore.s3 import checksum
from distroml.objectstore.s3.credentials import UsualCredentials
from distroml.objectstore.s3.settings import S3Settings

Buffer = bytes | memoryview

IF_ABSENT: Mapping[str, str] = {"If-None-Match": "*"}
_WITH_CHECKSUM: Mapping[str, str] = {"x-amz-checksum-mode": "ENABLED"}
_AGAIN = (429, 500, 502, 503, 504)
_PAGE = 1000

# Servers that keep objects in folders remove the one whose last object goes. What is put there at that moment is
# refused by MinIO as the first, by versitygw as the second, though nothing is wrong with it a moment later.
_RACED = ("AccessDenied", "ExistingObjectIsDirectory")
_RACES = 6
_FIRST_PAUSE_S = 0.01


class S3Client(Minio):
    """One bucket. Raises what the client and urllib3 raise; `distroml.objectstore.s3.errors` translates it."""

    def __init__(self, settings: S3Settings) -> None:
        super().__init__(
            settings.host,
            secure=settings.secure,
            region=settings.region,
            credentials=UsualCredentials(ask_for_role=settings.ask_for_role),
            http_client=PoolManager(
                # Kept for more than parts: many threads read, and ask for heads.
                maxsize=16 + settings.parallel,
                timeout=Timeout(connect=settings.connect_timeout_s, read=settings.read_timeout_s),
                cert_reqs="CERT_REQUIRED",
                ca_certs=settings.ca_file or certifi.where(),
                retries=Retry(
                    total=settings.retries,
                    backoff_factor=0.3,
                    backoff_jitter=0.2,
                    status_forcelist=_AGAIN,
                    # Ours all bear being sent again; what a conditional one did the first time is found out.
                    allowed_methods=None,
                    raise_on_status=False,
                ),
            ),
        )
        self._bucket = settings.bucket

    def put(self, name: str, body: Buffer, headers: Mapping[str, str]) -> str:
        """PutObject; the object's tag."""
        summed = {checksum.HEADER: checksum.written(checksum.checksum(body))}
        return _tag(self._send("PUT", name, body=body, headers={**headers, **summed}))

    def begin_parts(self, name: str, headers: Mapping[str, str]) -> str:
        """CreateMultipartUpload; the upload's id."""
        summed = {"x-amz-checksum-algorithm": "CRC32", checksum.KIND: checksum.WHOLE}
        answer = self._send("POST", name, headers={**headers, **summed}, query={"uploads": ""})
        return cast("str", findtext(ElementTree.fromstring(answer.data), "UploadId", True))

    def put_part(self, name: str, upload: str, number: int, body: Buffer, crc: int) -> str:
        """UploadPart; the part's tag."""
        query = {"partNumber": str(number), "uploadId": upload}
        return _tag(self._send("PUT", name, body=body, headers={checksum.HEADER: checksum.written(crc)}, query=query))

    def join_parts(
        self, name: str, upload: str, parts: Sequence[tuple[str, int]], crc: int, headers: Mapping[str, str]
    ) -> str:
        """CompleteMultipartUpload of (tag, checksum) of each part; the object's tag."""
        root = Element("CompleteMultipartUpload")
        for number, (tag, part_crc) in enumerate(parts, 1):
            part = SubElement(root, "Part")
            SubElement(part, "PartNumber", str(number))
            SubElement(part, "ETag", f'"{tag}"')
            SubElement(part, "ChecksumCRC32", checksum.written(part_crc))
        summed = {checksum.HEADER: checksum.written(crc), checksum.KIND: checksum.WHOLE}
        typed = {"Content-Type": "application/xml"}
        answer = self._send(
            "POST", name, body=getbytes(root), headers={**headers, **summed, **typed}, query={"uploadId": upload}
        )
        document = ElementTree.fromstring(answer.data)
        # A server that takes long answers 200 before it knows how it ends.
        if document.tag.rpartition("}")[2] == "Error":
            raise S3Error.fromxml(answer)
        return cast("str", findtext(document, "ETag", True)).strip('"')

    def drop_parts(self, name: str, upload: str) -> None:
        """AbortMultipartUpload."""
        self._send("DELETE", name, query={"uploadId": upload})

    def get(self, name: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        """GetObject; the answer's body is still to be read, and its connection to be released."""
        return self._send("GET", name, headers={**headers, **_WITH_CHECKSUM}, preload=False)

    def head(self, name: str) -> Mapping[str, str]:
        """HeadObject; its headers."""
        return self._send("HEAD", name, headers=_WITH_CHECKSUM).headers

    def delete(self, name: str) -> None:
        """DeleteObject."""
        self._send("DELETE", name)

    def list(self, prefix: str, after: str, limit: int) -> Iterator[Object]:
        """ListObjectsV2, as many requests as it takes."""
        found = self._list_objects(
            self._bucket, prefix=prefix, start_after=after, max_keys=min(limit, _PAGE), encoding_type="url"
        )
        return islice(found, limit)

    def has_bucket(self) -> bool:
        """Whether there is the bucket, asked in a way that makes a refusal say why."""
        try:
            self._execute("GET", self._bucket, query_params={"list-type": "2", "max-keys": "1", "prefix": ""})
        except S3Error as error:
            if error.code == "NoSuchBucket":
                return False
            raise
        return True

    def close(self) -> None:
        """Close the connections."""
        self._http.clear()

    def _send(
        self,
        method: str,
        name: str,
        *,
        body: Buffer | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        preload: bool = True,
    ) -> BaseHTTPResponse:
        for pause_s in (_FIRST_PAUSE_S * 2**n for n in range(_RACES)):
            try:
                return self._send_once(method, name, body, headers or {}, query or {}, preload)
            except S3Error as error:
                if method in ("GET", "HEAD") or error.code not in _RACED:
                    raise
                time.sleep(pause_s * random.uniform(0.5, 1.5))
        return self._send_once(method, name, body, headers or {}, query or {}, preload)

    def _send_once(
        self,
        method: str,
        name: str,
        body: Buffer | None,
        headers: Mapping[str, str],
        query: Mapping[str, str],
        preload: bool,
    ) -> BaseHTTPResponse:
        return self._execute(
            method,
            self._bucket,
            name,
            # Any buffer will do: it is hashed and sent, and shown only where the client is told to trace.
            body=cast("bytes | None", body),
            headers=dict(headers),
            query_params=dict(query),
            preload_content=preload,
            no_body_trace=True,
        )


def _tag(answer: BaseHTTPResponse) -> str:
    return answer.headers.get("etag", "").strip('"')
