"""A job's scheme changes beside its checkpoints: steps that are made again use them also where no process is left."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from distroml.objectstore import ObjectStoreError
from distroml.runtime.compress.control import Change
from distroml.runtime.training.storage import Storage

log = logging.getLogger("distroml.runtime.train")


class SchemeRecord:
    """Rank 0's record of one generation; each has all changes of the training up to it.

    A record that cannot be written or read costs a restart from nothing its exact repetition, and no more.
    """

    def __init__(self, storage: Storage, generation: int) -> None:
        self._storage = storage
        self._generation = generation

    def write(self, changes: Sequence[Change]) -> None:
        """Keep all `changes` so far; durable before the first step that the newest hold for."""
        try:
            self._storage.store.put(f"{self._folder}{self._generation:08d}.json", msgspec.json.encode(list(changes)))
        except ObjectStoreError as error:
            log.warning("changes of compression schemes are not kept: %s", error)

    def read(self) -> list[Change]:
        """What the newest generation before this one kept; nothing where none did."""
        try:
            keys = [info.key for info in self._storage.store.list(self._folder)]
            older = [key for key in keys if key < f"{self._folder}{self._generation:08d}.json"]
            return msgspec.json.decode(self._storage.store.get(older[-1]), type=list[Change]) if older else []
        except (ObjectStoreError, msgspec.MsgspecError) as error:
            log.warning("recorded changes of compression schemes cannot be read, they are decided anew: %s", error)
            return []

    @property
    def _folder(self) -> str:
        return f"schemes/{self._storage.job}/"
