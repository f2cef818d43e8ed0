"""Immutable blobs by key, behind one port."""

from distroml.objectstore.port import (
    NoSuchObject,
    ObjectDamaged,
    ObjectExists,
    ObjectInfo,
    ObjectStore,
    ObjectStoreDown,
    ObjectStoreError,
    ObjectStoreFull,
    ObjectStoreRefused,
)

__all__ = [
    "NoSuchObject",
    "ObjectDamaged",
    "ObjectExists",
    "ObjectInfo",
    "ObjectStore",
    "ObjectStoreDown",
    "ObjectStoreError",
    "ObjectStoreFull",
    "ObjectStoreRefused",
]
