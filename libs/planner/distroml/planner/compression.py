"""Schemes as users write them, such as "powersgd:4+int8": read without torch, refused with what to write instead."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, cast

Kind = Literal["none", "bf16", "fp16", "int8", "int4", "sign", "topk", "randomk", "powersgd"]
Payload = Literal["", "int8", "bf16"]

AUTO = "auto"
"""Let the controller choose."""

# What each kind is asked for after its colon, and an example of it.
_ARGUMENT: dict[Kind, str] = {
    "none": "",
    "bf16": "",
    "fp16": "",
    "int8": "",
    "int4": "",
    "sign": "",
    "topk": "0.01",
    "randomk": "0.01",
    "powersgd": "4",
}
_PAYLOADS: tuple[Payload, ...] = ("int8", "bf16")
_CARRIERS: tuple[Kind, ...] = ("topk", "randomk", "powersgd")


class UnknownScheme(ValueError):
    """A text that names no compression scheme. The message says why, and the nearest text that does."""

    def __init__(self, text: str, why: str, instead: str) -> None:
        super().__init__(f"compression scheme {text!r}: {why}; write {instead}")


@dataclass(frozen=True, slots=True)
class Spec:
    """A scheme's settings.

    Attributes:
        kind: which scheme.
        ratio: of the elements that Top-K and random-K tell; 0 for other kinds.
        rank: of PowerSGD; 0 for other kinds.
        payload: what Top-K's and random-K's values and PowerSGD's factors travel as: "int8", "bf16", or "" for float32.
    """

    kind: Kind
    ratio: float = 0.0
    rank: int = 0
    payload: Payload = ""

    @property
    def name(self) -> str:
        """As a user writes it; `parse_spec(name)` gives an equal one."""
        argument = f":{self.ratio!r}" if self.ratio else f":{self.rank}" if self.rank else ""
        return self.kind + argument + (f"+{self.payload}" if self.payload else "")


def parse_spec(text: str) -> Spec:
    """The settings that `text` names. Raises `UnknownScheme`."""
    head, plus, payload = text.strip().lower().partition("+")
    word, colon, argument = head.partition(":")
    if word == "auto":
        raise UnknownScheme(text, "auto chooses among schemes and is none itself", "auto only where one may be chosen")
    kind = cast("Kind", word)
    if kind not in _ARGUMENT:
        near = difflib.get_close_matches(word, _ARGUMENT, n=1, cutoff=0.5)
        raise UnknownScheme(
            text, "there is no such scheme", _example(cast("Kind", near[0])) if near else f"one of {_all()}"
        )
    if colon and not _ARGUMENT[kind]:
        raise UnknownScheme(text, f"{kind} takes no argument", kind)
    if plus and kind not in _CARRIERS:
        raise UnknownScheme(text, f"{kind} has nothing that could travel as {payload or 'something else'}", kind)
    carried = cast("Payload", payload)
    if plus and carried not in _PAYLOADS:
        raise UnknownScheme(text, f"what {kind} tells travels as float32, int8 or bf16", f"{head}+int8 or {head}+bf16")
    if kind == "powersgd":
        return Spec(kind, rank=_rank(text, argument), payload=carried)
    return Spec(kind, ratio=_ratio(text, kind, argument) if _ARGUMENT[kind] else 0.0, payload=carried)


def share_of(ratio: float, elements: int) -> int:
    """How many of `elements` are told of a share, as that is written in decimals: rounded up, at least one of any.

    A product of floats may be off by one, and then ranks' messages would be of another size than what was planned.
    """
    return min(elements, max(1, math.ceil(Fraction(repr(float(ratio))) * elements)))


def read_wish(text: str) -> str:
    """What a job may be told of compression: "auto", or a scheme as `Spec.name` writes it. Raises `UnknownScheme`."""
    return AUTO if text.strip().lower() == AUTO else parse_spec(text).name


def _rank(text: str, argument: str) -> int:
    if argument.isascii() and argument.isdecimal() and int(argument) > 0:
        return int(argument)
    why = f"a rank is a whole number of 1 or more, not {argument!r}" if argument else "the rank is missing"
    raise UnknownScheme(text, why, _example("powersgd"))


def _ratio(text: str, kind: Kind, argument: str) -> float:
    if not argument:
        raise UnknownScheme(text, "the share of elements is missing", f"{_example(kind)} for one in a hundred")
    try:
        ratio = float(argument)
    except ValueError:
        raise UnknownScheme(text, f"{argument!r} is no number", _example(kind)) from None
    if 0.0 < ratio <= 1.0:
        return ratio
    share = ratio / 100
    instead = f"{kind}:{share:g} for {ratio:g} %" if 1.0 < ratio <= 100.0 else _example(kind)
    raise UnknownScheme(text, f"the share of elements is above 0 and up to 1, not {argument}", instead)


def _example(kind: Kind) -> str:
    return f"{kind}:{_ARGUMENT[kind]}" if _ARGUMENT[kind] else kind


def _all() -> str:
    return ", ".join(_example(kind) for kind in _ARGUMENT)
