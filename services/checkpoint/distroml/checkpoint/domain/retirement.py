"""Whether the catalogue of a job that is over may leave the live state."""

from __future__ import annotations

from distroml.checkpoint.domain.state import Catalogue


def is_settled(catalogue: Catalogue) -> bool:
    """Whether nothing is about to become of it.

    Kept and pinned checkpoints do not hold it back. Whatever looks for garbage loads the catalogue of one job first,
    a retired one as well, and does nothing where it cannot be loaded; so what a retired catalogue names stays named. A
    save whose ranks have all reported is about to be a checkpoint, and is waited for; one that lacks reports, of a job
    that ended in the middle of it, never will be.
    """
    return catalogue.open is None or catalogue.open.missing > 0
