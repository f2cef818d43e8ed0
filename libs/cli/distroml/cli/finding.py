"""What a check of `doctor` saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw, and what to do where it is not well."""

    check: str
    verdict: Verdict
    text: str
    advice: str = ""
