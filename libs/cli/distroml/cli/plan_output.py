"""A plan on the terminal: what was chosen and why, what binds, time and memory by part, what else was possible."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from distroml.cli import output
from distroml.cli.plan_request import Request
from distroml.planner import Choice, Counterfactual, Prediction, Refused, Sensitivity, compression_lines

MAX_SHOWN = 5


def show_choice(request: Request, choice: Choice) -> None:
    """The chosen plan and its alternatives."""
    _head(request)
    show_prediction(choice.prediction)
    output.out.print("[bold]why[/]")
    for reason in choice.plan.reasons:
        _line(f"- {reason}")
    output.out.print("[bold]what binds[/]")
    for line in request.explainer.binds():
        _line(f"- {line}")
    if choice.alternatives:
        output.out.print("[bold]what else was possible[/]")
    for one in choice.alternatives[:MAX_SHOWN]:
        step, peak = one.prediction.step_seconds, one.prediction.peak_bytes_per_rank
        _line(f"- {output.short_time(step)}, {output.binary_size(peak)}: {one.plan}")
        _line(f"  {one.reason}")


def show_prediction(prediction: Prediction) -> None:
    """A plan's step and memory with their parts."""
    output.out.print(f"[bold]plan[/]  {prediction.plan}")
    step, peak = prediction.step_seconds, prediction.peak_bytes_per_rank
    ahead = f"{output.short_time(step)} a step, {prediction.mfu:.1%} of the devices' peak"
    output.out.print(f"[bold]time[/]  {ahead}; most of it {prediction.binding}")
    _line(", ".join(_shares(prediction.seconds, step, output.short_time)))
    limit = output.binary_size(prediction.capacity_bytes)
    output.out.print(f"[bold]memory[/]  {output.binary_size(peak)} of {limit} on the rank that needs most")
    _line(", ".join(_shares(prediction.bytes, peak, output.binary_size)))
    if prediction.compressed is not None:
        first, *more = compression_lines(prediction) or ["no rank has the same gradients as another one"]
        output.out.print(f"[bold]compression[/]  {first}")
        for line in more:
            _line(line)


def show_price(request: Request, text: str, priced: Prediction | Refused) -> None:
    """The price of one given plan, or why it is not possible."""
    _head(request)
    if isinstance(priced, Prediction):
        show_prediction(priced)
        return
    output.out.print(f"[bold]plan[/]  {text}")
    output.out.print(f"not possible: {priced.reason}", markup=False)
    if priced.nearest:
        output.out.print(f"  → {priced.nearest}", markup=False)


def show_why_not(request: Request, asked: str, found: Counterfactual) -> None:
    """The chosen plan against the best one that is as asked."""
    _head(request)
    chosen = request.choice.prediction
    output.out.print(f"[bold]chosen[/]  {chosen.plan}: {output.short_time(chosen.step_seconds)} a step")
    if found.prediction is None:
        output.out.print(f"[bold]{asked}[/] is not possible: {found.reason}")
        return
    best = found.prediction
    output.out.print(f"[bold]with {asked}[/]  {best.plan}: {output.short_time(best.step_seconds)} a step")
    output.out.print(f"  {found.reason}", markup=False)


def show_sensitivity(request: Request, cases: tuple[Sensitivity, ...]) -> None:
    """What other batches and links would do."""
    _head(request)
    chosen = request.choice.prediction
    output.out.print(f"[bold]chosen[/]  {chosen.plan}: {output.short_time(chosen.step_seconds)} a step")
    for case in cases:
        output.out.print(f"  with {case}", markup=False)


def _head(request: Request) -> None:
    levels = " x ".join(
        f"{level.extent} ({level.name})" for level in reversed(request.topology.levels) if level.extent > 1
    )
    world, device = request.topology.world_size, request.topology.device.name
    output.out.print(
        f"{request.name}, {_count(request.profile.parameters)} parameters, on {world:,} x {device}"
        f"{f' [{levels}]' if levels else ''}, {request.global_batch:,} samples a step",
        markup=False,
    )
    for note in request.notes:
        output.out.print(f"  note: {note}", style="dim", markup=False)


def _count(number: int) -> str:
    for word, scale in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {word}"
    return str(number)


def _shares(parts: Mapping[str, float], total: float, words: Callable[[float], str]) -> Iterator[str]:
    for name, value in sorted(parts.items(), key=lambda part: -part[1]):
        if value > 0.01 * total:
            yield f"{name} {words(value)} ({value / total:.0%})"


def _line(text: str) -> None:
    output.out.print(f"  {text}", markup=False)
