"""Where the objects of a job's checkpoints lie."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """Object keys of one job's checkpoints.

    Data and shard manifests lie below the id of the save that wrote them, so that collection knows whose they are.
    """

    job: str

    @property
    def root(self) -> str:
        """Prefix of everything that belongs to the job's checkpoints."""
        return f"checkpoints/{self.job}/"

    @property
    def data(self) -> str:
        """Prefix of all packs."""
        return f"{self.root}data/"

    def data_of(self, save_id: str) -> str:
        """Prefix of the packs of one save."""
        return f"{self.data}{save_id}/"

    def pack(self, save_id: str, rank: int, name: str) -> str:
        """A pack of one rank."""
        return f"{self.data_of(save_id)}r{rank:05d}-{name}"

    def shard(self, save_id: str, rank: int, sha256: str) -> str:
        """The shard manifest of one rank."""
        return f"{self.root}shards/{save_id}/r{rank:05d}-{sha256}"

    def manifest(self, sha256: str) -> str:
        """The manifest of this hash."""
        return f"{self.root}manifests/{sha256}"

    def save_of(self, key: str) -> str | None:
        """The save that wrote a data object or shard manifest; None for manifests and foreign keys."""
        for kind in ("data/", "shards/"):
            prefix = self.root + kind
            if key.startswith(prefix):
                save_id, slash, _ = key[len(prefix) :].partition("/")
                return save_id if slash else None
        return None

    def hash_of(self, key: str) -> str | None:
        """The hash in a manifest's key; None for any other key."""
        prefix = f"{self.root}manifests/"
        return key[len(prefix) :] if key.startswith(prefix) else None
