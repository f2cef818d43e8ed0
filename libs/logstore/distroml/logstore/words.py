"""What a text query means, the same for every back end: words, whole, whatever their case.

A word is a run of letters, digits and underscores. A query's parts stand between spaces, or between double quotes; a
line matches where each part's words stand in it one after the other: `cuda.OutOfMemoryError "step 120"`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, TypeAlias

MAX_WORD_CHARS: Final = 100
"""Longer words are several: a server's tokens are bounded."""

Phrases: TypeAlias = tuple[tuple[str, ...], ...]

_WORD: Final = re.compile(rf"\w{{1,{MAX_WORD_CHARS}}}")
_APART: Final = {code: " " for code in range(128) if not (chr(code).isalnum() or chr(code) == "_")}
# The same for many lines at once, lowered, whose ends stay; and a word that is too long, where what words are made of
# is `w`.
_LOWERED_APART: Final = bytes(32 if code in _APART and code != 10 else code for code in range(256)).lower()
_AS_WORDS: Final = bytes(32 if code in _APART else 119 for code in range(256))
_LONG: Final = b"w" * (MAX_WORD_CHARS + 1)
_PART: Final = re.compile(r'"([^"]*)"?|([^\s"]+)')


def words(text: str) -> list[str]:
    """The words of a line, in order."""
    return _WORD.findall(text.lower())


def joined(text: str) -> str:
    """The words of a line with a space between each."""
    lowered = text.lower()
    if lowered.isascii():
        # Nearly every line that is shipped, in a third of the time.
        found = lowered.translate(_APART).split()
        if max(map(len, found), default=0) <= MAX_WORD_CHARS:
            return " ".join(found)
    return " ".join(words(text))


def joined_all(lines: bytes) -> bytes:
    """The words of each line, whatever stands between them; each line has its end, and keeps it.

    No word of it needs to be escaped in JSON, and more than one space says what one says.
    """
    if lines.isascii() and _LONG not in lines.translate(_AS_WORDS):
        return lines.translate(_LOWERED_APART)
    return "\n".join(map(joined, lines.decode(errors="replace").split("\n"))).encode()


def phrases(query: str) -> Phrases:
    """The parts of a query, each as its words; parts without words say nothing."""
    parts = (words(quoted or bare) for quoted, bare in _PART.findall(query))
    return tuple(tuple(part) for part in parts if part)


def matches(text: str, wanted: Phrases) -> bool:
    """Whether each part stands in the line."""
    have = words(text)
    return all(_stands_in(have, phrase) for phrase in wanted)


def _stands_in(have: Sequence[str], phrase: tuple[str, ...]) -> bool:
    size = len(phrase)
    return any(tuple(have[at : at + size]) == phrase for at in range(len(have) - size + 1))
