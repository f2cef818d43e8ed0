"""What saving and loading a checkpoint raises."""

from __future__ import annotations


class CheckpointError(Exception):
    """Root of what this package raises; store failures stay `ObjectStoreError`.

    CheckpointError
    ├── CorruptChunk        bytes are not what was saved, or are gone: use another checkpoint
    ├── StateMismatch       the checkpoint does not fit the state it should be loaded into
    └── UnsupportedState    the state holds a value that no checkpoint can hold
    """


class CorruptChunk(CheckpointError):
    """Bytes are not what was saved, or are gone. The state that was being loaded may be half overwritten.

    Attributes:
        manifest_hash: the checkpoint.
        object_key: the object that is damaged or missing.
        chunk_hash: SHA-256 that the bytes should have; the manifest's own where the manifest is damaged.
        message: what was found instead.
    """

    def __init__(self, manifest_hash: str, object_key: str, chunk_hash: str, message: str) -> None:
        super().__init__(f"checkpoint {manifest_hash[:12]} is damaged: {message}; use an older checkpoint")
        self.manifest_hash = manifest_hash
        self.object_key = object_key
        self.chunk_hash = chunk_hash
        self.message = message


class StateMismatch(CheckpointError):
    """The checkpoint does not fit; `problems` names every difference."""

    def __init__(self, problems: list[str]) -> None:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        super().__init__(
            f"the checkpoint does not fit the model or optimizer: {shown}. "
            "Build them as they were when the checkpoint was saved"
        )
        self.problems = problems


class UnsupportedState(CheckpointError):
    """The state holds a value that no checkpoint can hold."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where} cannot be saved: {why}")
        self.where = where
