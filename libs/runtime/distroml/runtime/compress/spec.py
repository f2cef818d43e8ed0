"""Schemes as users write them. The grammar lies where the command line reads it, too, without torch."""

from distroml.planner.compression import Kind, Payload, Spec, UnknownScheme, parse_spec

__all__ = ["Kind", "Payload", "Spec", "UnknownScheme", "parse_spec"]
