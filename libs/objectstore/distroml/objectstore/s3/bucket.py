"""Whose bucket it is, and whether its server decides conditional puts."""

from __future__ import annotations

import json
import threading

from minio.error import MinioException, S3Error
from urllib3.exceptions import HTTPError

from distroml.objectstore.port import ObjectStoreRefused
from distroml.objectstore.s3.client import IF_ABSENT, S3Client
from distroml.objectstore.s3.errors import translated
from distroml.objectstore.s3.settings import S3Settings

_OWNER = "deployment.json"
_PROBE = "probe"
_NOT_IMPLEMENTED = 501


class Bucket:
    """What is asked of a bucket before it is used. What it writes lies beside the keys, where no listing shows it."""

    def __init__(self, client: S3Client, settings: S3Settings) -> None:
        self._client, self._settings = client, settings
        self._lock = threading.Lock()
        self._decides: dict[bool, bool] = {}

    def check(self, deployment: str | None = None) -> None:
        """Look whether it can be used, and by this deployment where one is given; nothing is written.

        Raises:
            ObjectStoreRefused: it isn't there, is another deployment's, or the server won't serve us.
            ObjectStoreDown: no answer.
        """
        with translated(self._settings, ""):
            if not self._client.has_bucket():
                raise ObjectStoreRefused(
                    f"there is no bucket {self._settings.bucket!r} at {self._settings.endpoint}; the services make it "
                    "when they start"
                )
            owner = deployment and self._owner()
        if owner != deployment and owner is not None:
            raise self._foreign(owner, deployment)

    def claim(self, deployment: str) -> None:
        """Make it this deployment's where it is nobody's, the bucket with it where there is none.

        Raises:
            ObjectStoreRefused: another deployment has it.
        """
        with translated(self._settings, ""):
            if not self._client.has_bucket():
                self._make()
            owner = self._owner()
            if owner is None:
                self._write(deployment)
                owner = self._owner()
        if owner != deployment:
            raise self._foreign(owner, deployment)

    def need_conditions(self, *, in_parts: bool) -> None:
        """Raise `ObjectStoreRefused` where the server takes a conditional put for an ordinary one; asked once."""
        with self._lock:
            if in_parts not in self._decides:
                with translated(self._settings, ""):
                    self._decides[in_parts] = self._decides_conditions(in_parts)
        if not self._decides[in_parts]:
            raise ObjectStoreRefused(
                f"{self._settings.endpoint} does not heed `If-None-Match: *`{' on uploads in parts' * in_parts}, so "
                "that of two writers each would believe to be the first; use a server that does: AWS, MinIO since "
                "2024-08, versitygw since 1.0.16"
            )

    def _foreign(self, owner: str | None, deployment: str | None) -> ObjectStoreRefused:
        return ObjectStoreRefused(
            f"{self._settings.place} belongs to the deployment {owner}, this one is {deployment}: give each its own "
            "bucket or prefix (DISTROML_OBJECTS)"
        )

    def _make(self) -> None:
        try:
            self._client.make_bucket(self._settings.bucket, self._settings.region)
        except S3Error as error:
            # Another service of the deployment was faster.
            if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise

    def _owner(self) -> str | None:
        try:
            answer = self._client.get(self._settings.prefix + _OWNER, {})
        except S3Error as error:
            if error.code == "NoSuchKey":
                return None
            raise
        try:
            document = json.loads(answer.read())
        except ValueError:
            document = None
        finally:
            answer.release_conn()
        match document:
            case {"deployment": str(owner)}:
                return owner
            case _:
                raise ObjectStoreRefused(f"{_OWNER} in {self._settings.place} names no deployment; it is not ours")

    def _write(self, deployment: str) -> None:
        body = json.dumps({"deployment": deployment}).encode()
        try:
            self._client.put(self._settings.prefix + _OWNER, body, IF_ABSENT)
        except S3Error as error:
            if error.code not in ("PreconditionFailed", "ConditionalRequestConflict"):
                raise

    def _decides_conditions(self, in_parts: bool) -> bool:
        name = self._settings.prefix + _PROBE
        self._client.put(name, b"", {})
        try:
            if in_parts:
                self._join_one_part(name)
            else:
                self._client.put(name, b"", IF_ABSENT)
        except S3Error as error:
            if error.code == "PreconditionFailed":
                return True
            if error.response.status == _NOT_IMPLEMENTED:
                return False
            raise
        return False

    def _join_one_part(self, name: str) -> None:
        upload = self._client.begin_parts(name, {})
        try:
            tag = self._client.put_part(name, upload, 1, b"", 0)
            self._client.join_parts(name, upload, [(tag, 0)], 0, IF_ABSENT)
        except (MinioException, HTTPError):
            self._client.drop_parts(name, upload)
            raise
