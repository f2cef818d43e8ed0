"""Checkpoint manifests, chunk addressing and verification: pure, without torch.

A checkpoint is a manifest: it names every tensor and value, says which chunks hold its bytes, and where each chunk
lies in the object store. A manifest's own name is the SHA-256 of its bytes, so one hash vouches for a checkpoint.
"""

from distroml.manifest.chunking import CHUNK_BYTES, PACK_BYTES, Pack, chunk_bounds, chunk_hash, pack_chunks, pack_name
from distroml.manifest.codec import (
    ForeignManifest,
    ManifestDamaged,
    ManifestError,
    decode_manifest,
    decode_shard,
    encode,
    hash_of,
    read_manifest,
    read_shard,
)
from distroml.manifest.dtypes import ITEM_BYTES, item_bytes
from distroml.manifest.keys import Keys
from distroml.manifest.merge import CannotMerge, merge
from distroml.manifest.model import (
    MAX_EXTRA_BYTES,
    BytesEntry,
    ChunkRef,
    Entry,
    Manifest,
    ObjectRef,
    ShardManifest,
    TensorEntry,
)
from distroml.manifest.reach import Diff, KnownChunk, chunk_index, diff, reachable
from distroml.manifest.verify import ChunkDamage, damage_of, verify_chunks

__all__ = [
    "CHUNK_BYTES",
    "ITEM_BYTES",
    "MAX_EXTRA_BYTES",
    "PACK_BYTES",
    "BytesEntry",
    "CannotMerge",
    "ChunkDamage",
    "ChunkRef",
    "Diff",
    "Entry",
    "ForeignManifest",
    "Keys",
    "KnownChunk",
    "Manifest",
    "ManifestDamaged",
    "ManifestError",
    "ObjectRef",
    "Pack",
    "ShardManifest",
    "TensorEntry",
    "chunk_bounds",
    "chunk_hash",
    "chunk_index",
    "damage_of",
    "decode_manifest",
    "decode_shard",
    "diff",
    "encode",
    "hash_of",
    "item_bytes",
    "merge",
    "pack_chunks",
    "pack_name",
    "reachable",
    "read_manifest",
    "read_shard",
    "verify_chunks",
]
