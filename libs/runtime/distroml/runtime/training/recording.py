"""A job's scheme changes beside its checkpoints: steps that are made again use them also where no process is left."""

from __future__ import annotations

import logging

import msgspec

from distroml.objectstore import ObjectStoreError
from distroml.runtime.compress.control import Record
from distroml.runtime.training.storage import Storage

log = logging.getLogger("distroml.runtime.train")

_DIGITS = 8


class SchemeRecord:
    """One place's record as one generation leaves it; each has all changes of the training up to it.

    A record that cannot be written or read costs a restart from nothing its exact repetition, and no more.
    """

    def __init__(self, storage: Storage, generation: int, place: str = "") -> None:
        """`place` is as `place_of` names it; one rank of each writes."""
        self._storage = storage
        self._generation = generation
        self._ending = f"{'-' if place else ''}{place}.json"

    def write(self, record: Record) -> None:
        """Keep all that is known so far; durable before the first step that the newest changes hold for.

        Records of earlier generations, all of which this one has, go.
        """
        store = self._storage.store
        try:
            store.put(self._key, msgspec.json.encode(record))
            for key in self._kept():
                if key != self._key:
                    store.delete(key)
        except ObjectStoreError as error:
            log.warning("changes of compression schemes are not kept: %s", error)

    def read(self) -> Record:
        """What the newest generation up to this one kept; nothing where none did.

        Starts that no agent made are all of one generation.
        """
        try:
            kept = self._kept()
            return msgspec.json.decode(self._storage.store.get(kept[-1]), type=Record) if kept else Record()
        except (ObjectStoreError, msgspec.MsgspecError) as error:
            log.warning("recorded changes of compression schemes cannot be read, they are decided anew: %s", error)
            return Record()

    def _kept(self) -> list[str]:
        listed = (info.key for info in self._storage.store.list(self._folder))
        ours = (key for key in listed if key[len(self._folder) + _DIGITS :] == self._ending)
        return sorted(key for key in ours if key <= self._key)

    @property
    def _folder(self) -> str:
        return f"schemes/{self._storage.job}/"

    @property
    def _key(self) -> str:
        return f"{self._folder}{self._generation:0{_DIGITS}d}{self._ending}"
