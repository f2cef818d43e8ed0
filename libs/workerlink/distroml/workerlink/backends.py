"""Back ends of communication as users write them, known without torch: read, or refused with what to write instead."""

from __future__ import annotations

import difflib

AUTO = "auto"
"""nccl on GPUs, gloo elsewhere."""

MPI = "mpi"
"""Its ranks are started by mpirun, all on one node, and its world cannot be formed again in the same processes."""

BACKENDS = ("gloo", "nccl", MPI)


class UnknownBackend(ValueError):
    """A text that names no back end. The message says what to write instead."""

    def __init__(self, text: str) -> None:
        near = difflib.get_close_matches(text.strip().lower(), (AUTO, *BACKENDS), n=1, cutoff=0.5)
        known = f"{AUTO}, {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}"
        super().__init__(f"there is no back end {text!r}; " + (f"did you mean {near[0]}?" if near else f"use {known}"))


def read_backend(text: str) -> str:
    """The back end that `text` names, in its one spelling; empty for `auto`. Raises `UnknownBackend`."""
    name = text.strip().lower()
    if name == AUTO:
        return ""
    if name not in BACKENDS:
        raise UnknownBackend(text)
    return name
