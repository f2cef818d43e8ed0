"""The one error of cutting: `NoCut`, with the cause in words."""

from __future__ import annotations


class NoCut(ValueError):
    """The model cannot be cut where the plan wants it; the message names the module and the cause."""


class CutReached(BaseException):
    """Ends a stage's forward pass at its first foreign block. No error: hence no `Exception`, which models catch."""
