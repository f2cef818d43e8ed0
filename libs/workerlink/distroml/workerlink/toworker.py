"""What an agent says to a worker."""

from __future__ import annotations

import msgspec

from distroml.workerlink.message import Message


class Welcome(Message, frozen=True):
    """Answer to `Hello`."""

    job: str
    attempt: int
    node: str
    traceparent: str = ""


class Member(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One worker of a generation."""

    worker: str
    node: str
    rank: int
    local_rank: int


class CheckpointRef(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A committed checkpoint: its step and the hash that names its manifest object."""

    step: int
    manifest_hash: str


class Generation(Message, frozen=True):
    """The agreed member set and this worker's place in it. The store is a torch TCPStore that no worker hosts.

    `traceparent` is of the span in which it formed.
    """

    number: int
    rank: int
    local_rank: int
    node_rank: int
    world_size: int
    local_world_size: int
    store_host: str
    store_port: int
    members: list[Member]
    restore: CheckpointRef | None = None
    traceparent: str = ""


class GenerationBroken(Message, frozen=True):
    """Leave this generation at once: tear down its process groups and say `AwaitGeneration`."""

    number: int
    cause: str


class Drain(Message, frozen=True):
    """Leave this generation after the current step: save a checkpoint, then say `AwaitGeneration`."""

    number: int
    reason: str


class Stop(Message, frozen=True):
    """End within `grace_s`: exit 0 after the current step, saving first where `checkpoint` is set."""

    reason: str
    grace_s: int
    checkpoint: bool


class SaveOpened(Message, frozen=True):
    """The save may build on `base_manifest_hash` (empty: none) and write below `object_prefix`."""

    step: int
    save_id: str
    base_manifest_hash: str
    object_prefix: str


class SaveRefused(Message, frozen=True):
    """The save cannot be opened now; training goes on."""

    step: int
    reason: str
    message: str


class CheckpointCommitted(Message, frozen=True):
    """Every shard of the step is durable and the catalogue has it."""

    step: int
    manifest_hash: str


class CheckpointFailed(Message, frozen=True):
    """The save of this step will not become a checkpoint."""

    step: int
    message: str


class Latest(Message, frozen=True):
    """The newest sound checkpoint, or none."""

    restore: CheckpointRef | None = None


ToWorker = (
    Welcome
    | Generation
    | GenerationBroken
    | Drain
    | Stop
    | SaveOpened
    | SaveRefused
    | CheckpointCommitted
    | CheckpointFailed
    | Latest
)
