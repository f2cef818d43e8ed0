"""What a model is made of and what it costs, found without allocating its weights."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from distroml.runtime.profile.chain import Chain, NoChain, find_chain

if TYPE_CHECKING:
    from distroml.runtime.profile.model import ProfileRefused, profile

__all__ = ["Chain", "NoChain", "ProfileRefused", "find_chain", "profile"]


def __getattr__(name: str) -> object:
    # The profile asks the tensor plans, which ask the chain.
    if name in ("ProfileRefused", "profile"):
        return getattr(importlib.import_module("distroml.runtime.profile.model"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
