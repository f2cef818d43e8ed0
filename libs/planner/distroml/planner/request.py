"""What a user asks of a plan, as text: "dp_shard=2,tp=2,microbatch=4,schedule=1f1b,stages=3/3".

Names are those of `Plan`'s fields; `accum` stands for grad_accum_steps, `reshard` for reshard_after_forward, `chunks`
for the number of stages on each rank. Whatever `str(plan)` writes can be read.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

from distroml.planner.plan import (
    AXES,
    DEFAULT_BUCKET_MB,
    RECOMPUTE,
    SCHEDULES,
    Axis,
    Plan,
    PlanRefused,
    Recompute,
    Schedule,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Constraints on a plan; None leaves a choice free.

    `tune_bucket`: the size of buckets is to be measured, even where all else is given ("bucket_mb=auto").
    """

    dp_replicate: int | None = None
    dp_shard: int | None = None
    tp: int | None = None
    pp: int | None = None
    order: tuple[Axis, ...] | None = None
    microbatch: int | None = None
    grad_accum_steps: int | None = None
    schedule: Schedule | None = None
    chunks: int | None = None
    stages: tuple[int, ...] | None = None
    recompute: Recompute | None = None
    reshard_after_forward: bool | None = None
    sequence_parallel: bool | None = None
    bucket_mb: float | None = None
    tune_bucket: bool | None = None

    @property
    def mesh(self) -> dict[Axis, int | None]:
        """Axis name to wanted size."""
        return {"pp": self.pp, "dp_replicate": self.dp_replicate, "dp_shard": self.dp_shard, "tp": self.tp}

    def whole(self) -> Wish:
        """The wish for one given plan: what it does not name is as `Plan` has it by itself.

        Left free are only the microbatch, recomputation, the cut into stages, and buckets whose size is to be measured.
        """
        axes: dict[str, Any] = {axis: size or 1 for axis, size in self.mesh.items()}
        several = (self.chunks or 1) > 1 or (self.stages is not None and len(self.stages) > axes["pp"])
        return replace(
            self,
            **axes,
            order=self.order or AXES,
            schedule=self.schedule or ("interleaved" if several else "1f1b"),
            reshard_after_forward=self.reshard_after_forward is not False,
            sequence_parallel=bool(self.sequence_parallel),
            bucket_mb=None if self.tune_bucket else self.bucket_mb or DEFAULT_BUCKET_MB,
        )

    def allows(self, plan: Plan) -> bool:
        """Whether `plan` is as wished."""
        wanted: dict[str, Any] = {name: getattr(self, name) for name in _READERS}
        return all(value is None or getattr(plan, name) == value for name, value in wanted.items())


def wish_of(plan: Plan) -> Wish:
    """The wish that only `plan` fulfils."""
    return Wish(
        **cast("dict[str, Any]", plan.mesh),
        order=plan.order,
        microbatch=plan.microbatch,
        grad_accum_steps=plan.grad_accum_steps,
        schedule=plan.schedule if plan.pp > 1 else None,
        stages=plan.stages or None,
        recompute=plan.recompute,
        reshard_after_forward=plan.reshard_after_forward if plan.dp_shard > 1 else None,
        sequence_parallel=plan.sequence_parallel if plan.tp > 1 else None,
        bucket_mb=plan.bucket_mb,
    )


def parse_wish(text: str) -> Wish:
    """The wish of NAME=VALUE parts separated by commas; "auto" and "" wish for nothing.

    Raises:
        PlanRefused: a part cannot be read: which, what was expected, and the nearest name where one is near.
    """
    values: dict[str, Any] = {}
    for part in ("" if text.strip() == "auto" else text).split(","):
        if not part.strip():
            continue
        given, equals, value = (piece.strip() for piece in part.partition("="))
        name = _SHORT.get(given, given)
        if name not in _READERS or not equals or not value:
            raise PlanRefused(
                f"plan {text!r} has {part.strip()!r}: expected 'auto' or NAME=VALUE parts separated by commas, with "
                f"NAME one of {', '.join(_READERS)}{_near(name)}"
            )
        if name in values:
            raise PlanRefused(f"plan {text!r} names {name} twice")
        try:
            values[name] = _READERS[name](value)
        except ValueError as error:
            raise PlanRefused(f"plan {text!r} has {part.strip()!r}: {name} must be {error}") from None
    if values.get("bucket_mb") == "auto":
        values |= {"bucket_mb": None, "tune_bucket": True}
    wish = Wish(**values)
    _check(wish, text)
    return wish


def _check(wish: Wish, text: str) -> None:
    if wish.stages is not None:
        pp = wish.pp or 1
        if len(wish.stages) % pp:
            raise PlanRefused(f"plan {text!r} has {len(wish.stages)} stages, which pp={pp} ranks cannot share evenly")
        if wish.chunks not in (None, len(wish.stages) // pp):
            raise PlanRefused(f"plan {text!r} has chunks={wish.chunks}, but {len(wish.stages)} stages for pp={pp}")


def _near(name: str) -> str:
    near = difflib.get_close_matches(name, _READERS, n=1)
    return f" (did you mean {near[0]}?)" if near and near[0] != name else ""


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError(f"a positive whole number, not {text!r}")
    return int(text)


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"a positive number, not {text!r}")
    return value


def _bucket(text: str) -> float | str:
    if text == "auto":
        return text
    try:
        return _amount(text)
    except ValueError as error:
        raise ValueError(f"auto or {error}") from None


def _flag(text: str) -> bool:
    if text.lower() not in ("yes", "no", "true", "false", "1", "0"):
        raise ValueError(f"yes or no, not {text!r}")
    return text.lower() in ("yes", "true", "1")


def _one_of(known: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in known:
            near = difflib.get_close_matches(text, known, n=1)
            raise ValueError(f"one of {', '.join(known)}, not {text!r}{f' (did you mean {near[0]}?)' if near else ''}")
        return text

    return read


def _stages(text: str) -> tuple[int, ...]:
    sizes: list[int] = []
    for part in text.split("/"):
        size, _, many = part.partition("x")
        if not all(number.isascii() and number.isdigit() for number in (size, many or "1")) or int(many or 1) > 4096:
            raise ValueError(f"numbers of blocks separated by '/', such as 3/3 or 2x14/1, not {text!r}")
        sizes += [int(size)] * int(many or 1)
    return tuple(sizes)


def _order(text: str) -> tuple[str, ...]:
    """Named axes from outermost to innermost; axes that are left out come before them."""
    named = tuple(text.split("/"))
    if len(set(named)) != len(named) or not set(named) <= set(AXES):
        raise ValueError(f"axes from outermost to innermost separated by '/', of {', '.join(AXES)}, not {text!r}")
    return (*(axis for axis in AXES if axis not in named), *named)


_READERS: dict[str, Callable[[str], Any]] = {
    "dp_replicate": _count,
    "dp_shard": _count,
    "tp": _count,
    "pp": _count,
    "order": _order,
    "microbatch": _count,
    "grad_accum_steps": _count,
    "schedule": _one_of(SCHEDULES),
    "chunks": _count,
    "stages": _stages,
    "recompute": _one_of(RECOMPUTE),
    "reshard_after_forward": _flag,
    "sequence_parallel": _flag,
    "bucket_mb": _bucket,
}
_SHORT = {"accum": "grad_accum_steps", "reshard": "reshard_after_forward"}
