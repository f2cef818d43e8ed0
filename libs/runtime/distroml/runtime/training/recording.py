"""A job's scheme changes beside its checkpoints: steps that are made again use them also where no process is left."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from distroml.objectstore import ObjectStoreError
from distroml.runtime.compress.control import Change
from distroml.runtime.training.storage import Storage

log = logging.getLogger("distroml.runtime.train")

_DIGITS = 8


class SchemeRecord:
    """One place's record of one generation; each has all changes of the training up to it.

    A record that cannot be written or read costs a restart from nothing its exact repetition, and no more.
    """

    def __init__(self, storage: Storage, generation: int, place: str = "") -> None:
        """`place` is as `place_of` names it; one rank of each writes."""
        self._storage = storage
        self._generation = generation
        self._ending = f"{'-' if place else ''}{place}.json"

    def write(self, changes: Sequence[Change]) -> None:
        """Keep all `changes` so far; durable before the first step that the newest hold for.

        Records of earlier generations, all of which this one has, go.
        """
        store = self._storage.store
        try:
            store.put(self._key, msgspec.json.encode(list(changes)))
            for key in self._earlier():
                store.delete(key)
        except ObjectStoreError as error:
            log.warning("changes of compression schemes are not kept: %s", error)

    def read(self) -> list[Change]:
        """What the newest generation before this one kept; nothing where none did."""
        try:
            earlier = self._earlier()
            return msgspec.json.decode(self._storage.store.get(earlier[-1]), type=list[Change]) if earlier else []
        except (ObjectStoreError, msgspec.MsgspecError) as error:
            log.warning("recorded changes of compression schemes cannot be read, they are decided anew: %s", error)
            return []

    def _earlier(self) -> list[str]:
        listed = (info.key for info in self._storage.store.list(self._folder))
        ours = (key for key in listed if key[len(self._folder) + _DIGITS :] == self._ending)
        return sorted(key for key in ours if key < self._key)

    @property
    def _folder(self) -> str:
        return f"schemes/{self._storage.job}/"

    @property
    def _key(self) -> str:
        return f"{self._folder}{self._generation:0{_DIGITS}d}{self._ending}"
