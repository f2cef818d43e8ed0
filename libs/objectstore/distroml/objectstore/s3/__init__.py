"""Objects in S3, by the `minio` client: `distroml[stack]` brings it."""

from distroml.objectstore.s3.settings import S3Settings, read_settings
from distroml.objectstore.s3.store import S3ObjectStore, open_object_store

__all__ = ["S3ObjectStore", "S3Settings", "open_object_store", "read_settings"]
