"""What a model is made of and what it costs, found without allocating its weights."""

from distroml.runtime.profile.chain import Chain, NoChain, find_chain

__all__ = ["Chain", "NoChain", "find_chain"]
