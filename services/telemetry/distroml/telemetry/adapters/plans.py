"""What a PlanChosen event says, read with patience: its texts come from a worker, of any release."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, cast

import msgspec
from google.protobuf.message import DecodeError

from distroml.api.rendezvous.v1.rendezvous_pb2 import PlanChosen
from distroml.events import UnknownEvent
from distroml.planner import Plan, PlanRefused
from distroml.planner.picture import Drawing
from distroml.rpc.publicevents import decode_public
from distroml.telemetry.history.port import PlanBody

T = TypeVar("T")

MAX_ALTERNATIVES = 20
MAX_SUMS = 200


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What is predicted of a plan; 0 and empty where nothing is."""

    step_seconds: float = 0.0
    peak_bytes_per_rank: float = 0.0
    mfu: float | None = None
    binding: object = None
    drawing: msgspec.Raw = msgspec.Raw()


class Alternative(msgspec.Struct, frozen=True, kw_only=True):
    """Another plan, and why it was not chosen."""

    plan: object = None
    prediction: Prediction | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A chosen plan. `text` is the plan in one line, empty where this release cannot read it."""

    generation: int = 0
    text: str = ""
    reasons: tuple[str, ...] = ()
    prediction: Prediction = field(default_factory=Prediction)
    best: tuple[Alternative, ...] = ()
    drawing: Drawing | None = None
    alternatives_hash: str = ""


class _Sums(msgspec.Struct):
    """The text `sums` of the event LinksProbed."""

    choice: str = ""


def read_chosen(plan: str, prediction: str, best: str, *, generation: int = 0, alternatives_hash: str = "") -> Chosen:
    """What the three texts say; a text that says nothing readable counts as empty."""
    found = _read(plan, Plan)
    predicted = _read(prediction, Prediction) or Prediction()
    return Chosen(
        generation=generation,
        text="" if found is None else str(found),
        reasons=() if found is None else found.reasons,
        prediction=predicted,
        best=tuple((_read(best, list[Alternative]) or [])[:MAX_ALTERNATIVES]),
        drawing=_drawing(predicted.drawing),
        alternatives_hash=alternatives_hash,
    )


def read_plan(body: PlanBody) -> Chosen | None:
    """What the stored event says; None where this release cannot read it."""
    try:
        event = decode_public(body.type, body.schema, body.data)
    except (UnknownEvent, DecodeError, ValueError):
        return None
    if not isinstance(event, PlanChosen):
        return None
    return read_chosen(
        event.plan, event.prediction, event.best, generation=body.generation, alternatives_hash=event.alternatives_hash
    )


def read_sums(text: str) -> str:
    """The choice of sums in words, as a LinksProbed event tells it; empty where it tells none that can be read."""
    found = _read(text, _Sums)
    return found.choice[:MAX_SUMS] if found is not None else ""


def plan_text(plan: object) -> str:
    """A plan in one line, whether it came as text or as an object; empty where it cannot be read."""
    if isinstance(plan, str):
        return plan
    try:
        return str(msgspec.convert(plan, Plan))
    except (msgspec.ValidationError, PlanRefused):
        return ""


def binding_text(value: object) -> str:
    """What binds, in words: a text, or an object or list of texts."""
    match value:
        case str():
            return value
        case dict():
            texts = cast("dict[object, object]", value).values()
            return ": ".join(text for text in texts if isinstance(text, str))
        case list():
            return "; ".join(binding_text(item) for item in cast("list[object]", value))
        case _:
            return ""


def _read(text: str, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(text, type=kind) if text else None
    except (msgspec.MsgspecError, PlanRefused):
        return None


def _drawing(raw: msgspec.Raw) -> Drawing | None:
    try:
        return Drawing.from_json(bytes(raw)) if bytes(raw) else None
    except ValueError:
        return None
