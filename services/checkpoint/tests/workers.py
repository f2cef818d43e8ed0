"""What the workers of a job do for a save, without torch: packs and shard manifests in the object store."""

from __future__ import annotations

from dataclasses import dataclass, field

from distroml.api.checkpoint.v1 import checkpoint_pb2 as pb
from distroml.manifest import (
    ChunkRef,
    Keys,
    KnownChunk,
    ObjectRef,
    ShardManifest,
    TensorEntry,
    chunk_hash,
    chunk_index,
    encode,
    hash_of,
    read_manifest,
)
from distroml.objectstore import ObjectStore


@dataclass
class Workers:
    """`world_size` ranks, each with one tensor of its own and one that never changes."""

    objects: ObjectStore
    job: str = "job-a"
    world_size: int = 2
    generation: int = 1
    written: list[str] = field(default_factory=list)

    def write(self, rank: int, step: int, opened: pb.BeginSaveResponse) -> pb.ReportShardRequest:
        keys = Keys(self.job)
        known: dict[str, KnownChunk] = {}
        if opened.base_manifest_hash:
            data = self.objects.get(keys.manifest(opened.base_manifest_hash))
            known = dict(chunk_index(read_manifest(data, opened.base_manifest_hash)))
        pack, objects, entries, reused = b"", [ObjectRef("", 0)], [], 0
        key = f"{opened.object_prefix}r{rank}-{step}"
        for name, content in ((f"w{rank}", b"%08d" % (step * 10 + rank)), (f"frozen{rank}", b"frozen%02d" % rank)):
            sha = chunk_hash(content)
            if sha in known:
                objects.append(known[sha].object)
                chunk = ChunkRef(len(objects) - 1, known[sha].offset, len(content), sha)
                reused += len(content)
            else:
                chunk = ChunkRef(0, len(pack), len(content), sha)
                pack += content
            entries.append(
                TensorEntry(
                    fqn=f"model.{name}",
                    path=("model", name),
                    dtype="uint8",
                    shape=(len(content),),
                    offsets=(0,),
                    sizes=(len(content),),
                    chunks=(chunk,),
                )
            )
        objects[0] = ObjectRef(key, len(pack))
        self.objects.put(key, pack)
        shard = ShardManifest(
            job=self.job,
            save_id=opened.save_id,
            step=step,
            generation=self.generation,
            rank=rank,
            world_size=self.world_size,
            base=opened.base_manifest_hash,
            objects=tuple(objects),
            entries=tuple(entries),
            extra=b"",
            bytes_written=len(pack),
            bytes_reused=reused,
        )
        data = encode(shard)
        sha = hash_of(data)
        shard_key = keys.shard(opened.save_id, rank, sha)
        self.objects.put(shard_key, data)
        self.written += [key, shard_key]
        return pb.ReportShardRequest(
            job=self.job,
            generation=self.generation,
            step=step,
            rank=rank,
            world_size=self.world_size,
            shard_key=shard_key,
            shard_hash=sha,
            bytes_written=len(pack),
            bytes_reused=reused,
            seconds=0.1,
        )

    def begin(self, step: int, keep: int = 2) -> pb.BeginSaveRequest:
        return pb.BeginSaveRequest(
            job=self.job,
            project="p",
            generation=self.generation,
            step=step,
            world_size=self.world_size,
            keep=keep,
        )


def loadable(objects: ObjectStore, job: str, manifest_hash: str) -> dict[str, bytes]:
    """Every tensor's bytes, each chunk compared with its hash."""
    manifest = read_manifest(objects.get(Keys(job).manifest(manifest_hash)), manifest_hash)
    found: dict[str, bytes] = {}
    for entry in manifest.entries:
        content = b""
        for chunk in entry.chunks:
            part = objects.get(manifest.objects[chunk.object].key, offset=chunk.offset, length=chunk.length)
            assert chunk_hash(part) == chunk.sha256
            content += part
        found[entry.fqn] = content
    return found
