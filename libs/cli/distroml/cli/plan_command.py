"""`plan`: the best parallel plan of a model on a cluster, with reasons; the price of given plans; on paper or live."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distroml.cli import output
from distroml.cli.errors import UsageError
from distroml.cli.options import Data, Json
from distroml.planner import PlanRefused, Prediction, Refused, Wish, complete, parse_wish

if TYPE_CHECKING:
    from distroml.cli.plan_request import Request
    from distroml.planner import Pricer


def plan(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="Model, cluster, batch and training.")],
    data: Data,
    json: Json = False,
    price: Annotated[
        str,
        typer.Option(
            metavar="PLAN|@FILE", help='Only price a plan such as "tp=8,pp=2,microbatch=4", or one a line of a file.'
        ),
    ] = "",
    why_not: Annotated[
        str, typer.Option(metavar="PLAN", help='Why not "tp=4"? The best such plan, and what it lacks.')
    ] = "",
    sensitivity: Annotated[bool, typer.Option("--sensitivity", help="What other batches and links would do.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Plan for the machines of the running control plane.")] = False,
    compress: Annotated[
        str, typer.Option(metavar="SCHEME", help="Sum gradients along dp_replicate so, such as int8 or powersgd:4.")
    ] = "",
    compress_shard: Annotated[
        str, typer.Option(metavar="SCHEME", help="Sum gradients along dp_shard so: int8 or int4.")
    ] = "",
    sync_every: Annotated[
        int, typer.Option(metavar="STEPS", min=0, help="Replicas step by themselves and meet after so many steps.")
    ] = 0,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw mesh, stages, memory and the schedule in time.")
    ] = None,
) -> None:
    """Choose the fastest parallel plan that fits, and say why; runs here, without a control plane."""
    if bool(price) + bool(why_not) + sensitivity > 1:
        raise UsageError("--price, --why-not and --sensitivity are different questions; ask one at a time")
    if picture is not None and (why_not or price.startswith("@")):
        raise UsageError("--picture draws one plan: the chosen one, or that of --price PLAN")
    # YAML and the client are slow to import, and needed here only.
    from distroml.cli.plan_request import requested

    request = requested(spec, data, live=live, compress=compress, compress_shard=compress_shard, sync_every=sync_every)
    if price.startswith("@"):
        for told in _priced_lines(request, price[1:]):
            output.print_json_line(told)
    elif price:
        _price(request, price, json, picture)
    elif why_not:
        _why_not(request, why_not, json)
    elif sensitivity:
        _sensitivity(request, json)
    else:
        _choose(request, json, picture)


def _choose(request: Request, json: bool, picture: Path | None) -> None:
    from distroml.cli import plan_output

    choice = request.choice
    if picture is not None:
        _draw(request, choice.prediction, picture)
    if json:
        output.print_json({**choice.as_dict(), "notes": list(request.notes)})
    else:
        plan_output.show_choice(request, choice)


def _price(request: Request, text: str, json: bool, picture: Path | None) -> None:
    from distroml.cli import plan_output

    try:
        wish = parse_wish(text)
    except PlanRefused as error:
        raise UsageError(str(error)) from error
    priced = _priced(request, request.pricer(), wish)
    if picture is not None:
        if not isinstance(priced, Prediction):
            raise UsageError(f"a plan that is not possible cannot be drawn: {priced}")
        _draw(request, priced, picture)
    if json:
        output.print_json(_told(text, priced))
    else:
        plan_output.show_price(request, text, priced)


def _priced_lines(request: Request, name: str) -> Iterator[dict[str, object]]:
    """One object for each line of a file that holds a plan; `-` is standard input."""
    try:
        lines = (sys.stdin.read() if name == "-" else Path(name).read_text("utf-8")).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read plans from {name}: {error}") from error
    pricer = request.pricer()
    for line in lines:
        if not (text := line.strip()):
            continue
        try:
            yield _told(text, _priced(request, pricer, parse_wish(text)))
        except PlanRefused as error:
            yield _told(text, Refused(reason=str(error)))


def _priced(request: Request, pricer: Pricer, wish: Wish) -> Prediction | Refused:
    if wish.recompute is None and request.wish.recompute is not None:
        wish = replace(wish, recompute=request.wish.recompute)
    return complete(pricer, wish)


def _told(text: str, priced: Prediction | Refused) -> dict[str, object]:
    if isinstance(priced, Prediction):
        return {"plan": priced.plan.as_dict(), "prediction": priced.as_dict(), "binding": priced.binding}
    told = priced.as_dict()
    # Whoever looks for `prediction` looks for a plan that is possible.
    if "prediction" in told:
        told["without_limit"] = told.pop("prediction")
    return {"plan": text, **told}


def _why_not(request: Request, asked: str, json: bool) -> None:
    from distroml.cli import plan_output

    try:
        wish = parse_wish(asked)
    except PlanRefused as error:
        raise UsageError(str(error)) from error
    found = request.explainer.why_not(wish)
    if not json:
        plan_output.show_why_not(request, asked, found)
        return
    told: dict[str, object] = {"asked": asked, "reason": found.reason}
    if found.prediction is not None:
        told |= {"plan": found.prediction.plan.as_dict(), "prediction": found.prediction.as_dict()}
    chosen = request.choice
    output.print_json(told | {"chosen": {"plan": chosen.plan.as_dict(), "prediction": chosen.prediction.as_dict()}})


def _sensitivity(request: Request, json: bool) -> None:
    from distroml.cli import plan_output

    cases = request.explainer.sensitivity()
    if not json:
        plan_output.show_sensitivity(request, cases)
        return
    chosen = request.choice
    output.print_json(
        {
            "plan": chosen.plan.as_dict(),
            "prediction": chosen.prediction.as_dict(),
            "sensitivity": [
                {
                    "change": case.change,
                    "text": str(case),
                    "kept": case.kept.as_dict() if case.kept is not None else None,
                    "best": None
                    if case.best is None
                    else {"plan": case.best.plan.as_dict(), "prediction": case.best.as_dict()},
                }
                for case in cases
            ],
        }
    )


def _draw(request: Request, prediction: Prediction, path: Path) -> None:
    from distroml.planner.picture import Drawing, draw

    svg = draw(Drawing.of(prediction, request.topology, name=request.name))
    try:
        path.write_text(svg, "utf-8")
    except OSError as error:
        raise UsageError(f"cannot write the picture to {path}: {error}") from error
