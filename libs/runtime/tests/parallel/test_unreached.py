"""Parameters that no rank reached in a step: nobody heeds what is told of them, and what is kept of them stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import pytest
import torch
from torch import nn

from distroml.planner import Plan
from distroml.runtime.checkpoint import RESIDUALS
from distroml.runtime.compress import Turn, parse_scheme
from distroml.runtime.compress.optim import DGC
from distroml.runtime.compress.simulate import run_in_lockstep
from distroml.runtime.elastic import World
from distroml.runtime.parallel.buckets import BucketSpec, lay_out
from distroml.runtime.parallel.buffers import Buffer
from distroml.runtime.parallel.compressed import CompressedExchange
from distroml.runtime.parallel.gradients import DividedGradients, Gradients
from distroml.runtime.parallel.keeping import Keeping
from distroml.runtime.parallel.mesh import Mesh
from distroml.runtime.parallel.reducer import GradientReducer
from distroml.runtime.parallel.sharding import Reached
from distroml.runtime.parallel.substitutes import substitute_of
from distroml.runtime.typed import backward

CPU = torch.device("cpu")
RANKS = 4


def two_layers() -> list[tuple[str, nn.Parameter]]:
    return [(name, nn.Parameter(torch.ones(2, 2))) for name in ("there", "away")]


def reach(*parameters: nn.Parameter) -> None:
    """A backward pass that gives all elements of these a gradient of 1."""
    backward(torch.stack([one.sum() for one in parameters]).sum())


def ones(spec: BucketSpec) -> torch.Tensor:
    """1 for each element of a parameter, 0 for padding."""
    flat = torch.zeros(spec.numel)
    for one in spec.segments:
        flat[one.offset : one.offset + one.numel] = 1.0
    return flat


@pytest.fixture
def exchange() -> Iterator[CompressedExchange]:
    """Of a rank that is alone, so that all that is kept would be told at once."""
    made = CompressedExchange(None, parse_scheme("int8"), seed=0, device=CPU)
    yield made
    made.close()


def whole(named: list[tuple[str, nn.Parameter]], exchange: CompressedExchange) -> Gradients:
    reducer = GradientReducer(named, exchange, bucket_mb=1)
    exchange.prepare(dict(enumerate(reducer.layout)))
    return reducer


def divided(named: list[tuple[str, nn.Parameter]], exchange: CompressedExchange) -> Gradients:
    names = [name for name, _ in named]
    gradients = DividedGradients(
        named,
        Mesh(Plan(), World(0, 0, 1, 0, CPU, None, "")),
        names=names,
        counted=dict.fromkeys(names, True),
        bucket_mb=1,
        reached=Reached(),
        sum_tied=None,
        exchange=exchange,
    )
    exchange.prepare(gradients.layout)
    return gradients


@pytest.mark.parametrize("kind", [whole, divided])
def test_what_is_kept_of_it_waits_until_a_pass_reaches_it(
    exchange: CompressedExchange, kind: Callable[..., Gradients]
) -> None:
    named = two_layers()
    (_, there), (_, away) = named
    gradients = kind(named, exchange)
    exchange.keep_share({0: ones(exchange.buffers[0].spec)})

    def step(number: int, *reached: nn.Parameter) -> None:
        exchange.open(number)
        gradients.begin()
        gradients.last = True
        exchange.announce(torch.tensor(1.0))
        reach(*reached)
        used = gradients.flush()
        gradients.wait()
        gradients.drop_unused(used)

    step(1, there)
    assert away.grad is None
    assert there.grad is not None
    assert there.grad.unique().tolist() == [2.0], "its gradient, and what was kept"
    assert float(gradients.norm()) == 4.0, "what was told of the other counts for nothing"
    assert float(exchange.fold()[0].sum()) == 4.0
    step(2, there, away)
    assert there.grad.unique().tolist() == [1.0]
    assert away.grad is not None
    assert away.grad.unique().tolist() == [2.0]
    assert exchange.fold() == {}


@pytest.mark.parametrize("scheme", ["int8", "sign", "fp16", "topk:0.1", "randomk:0.2+int8", "powersgd:1", "none"])
def test_every_scheme_keeps_of_it_what_it_kept_before(scheme: str) -> None:
    """To the bit on each rank, what owners keep of sums among it, and of the others nothing is lost."""
    made = torch.Generator().manual_seed(0)
    (spec,) = lay_out([("other", nn.Parameter(torch.ones(70, 80))), ("away", nn.Parameter(torch.ones(41, 40)))], 1)
    (away,) = (one for one in spec.segments if one.name == "away")
    part = slice(away.offset, away.offset + away.numel)
    buffers = [Buffer(0, spec, parse_scheme("int8" if scheme == "none" else scheme), RANKS) for _ in range(RANKS)]

    def exchanged(number: int, given: list[torch.Tensor]) -> torch.Tensor:
        for buffer in buffers:
            buffer.advance(number)
        turns = [Turn(rank, RANKS, number, 0, 1, 3.0) for rank in range(RANKS)]
        run_in_lockstep(
            [
                buffer.scheme.rounds(flat, buffer.layout, buffer.state, turn)
                for buffer, flat, turn in zip(buffers, given, turns, strict=True)
            ]
        )
        return given[0]

    def gradients() -> list[torch.Tensor]:
        return [torch.randn(spec.numel, generator=made) * ones(spec) for _ in range(RANKS)]

    for number in (1, 2):
        exchanged(number, gradients())
    for buffer in buffers:
        buffer.changes[3] = parse_scheme(scheme)
    before = [buffer.kept() for buffer in buffers]
    assert any(bool(one[part].any()) for one in before)
    given = gradients()
    for flat, buffer in zip(given, buffers, strict=True):
        flat[part] = 0.0
        buffer.lay_aside([away])
    true = sum(given) + 3.0 * sum(before)
    told = exchanged(3, given)
    for buffer in buffers:
        buffer.put_back({"away"})
    for buffer, old in zip(buffers, before, strict=True):
        assert torch.equal(buffer.kept()[part], old[part])
        assert not buffer.aside
    found = told + 3.0 * sum(buffer.kept() for buffer in buffers)
    found[part] = true[part]
    assert float((found - true).norm() / true.norm()) < 1e-5


def test_a_velocity_stands_still_where_no_pass_reached(exchange: CompressedExchange) -> None:
    """As momentum does where a parameter has no gradient."""
    named = two_layers()
    optimizer = DGC([parameter for _, parameter in named], lr=0.1)
    exchange.prepare(dict(enumerate(lay_out(named, 1))))
    exchange.substitute = substitute_of(optimizer, named, world_size=1)
    (buffer,) = exchange.buffers
    (away,) = (one for one in buffer.spec.segments if one.name == "away")
    for number, unreached in ((1, ()), (2, (away,))):
        exchange.open(number)
        flat = ones(buffer.spec)
        for one in unreached:
            flat[one.offset : one.offset + one.numel] = 0.0
        exchange.announce(torch.tensor(1.0))
        exchange.begin(0, buffer.spec, flat, unreached).wait()
        exchange.take_back([one.name for one in unreached])
    velocity = cast("torch.Tensor", buffer.velocity)
    assert velocity[away.offset : away.offset + away.numel].tolist() == [1.0] * 4
    assert float(velocity.sum()) == pytest.approx(4 * 1.9 + 4)


def test_what_an_earlier_run_owed_is_owed_until_a_pass_reaches_it() -> None:
    named = two_layers()
    (_, there), (_, away) = named
    keeping = Keeping(None, None, named, plan=Plan(), rank=0, residuals="folded")
    keeping.keep({RESIDUALS: {name: torch.full((2, 2), 3.0) for name in ("there", "away", "of another stage")}})
    there.grad, terms = torch.ones(2, 2), torch.tensor(2.0, dtype=torch.float64)
    keeping.feed_back(terms)
    assert there.grad.unique().tolist() == [7.0]
    assert away.grad is None
    assert [*keeping.kept()[RESIDUALS]] == ["away"]
    there.grad, away.grad = torch.ones(2, 2), torch.ones(2, 2)
    keeping.feed_back(terms)
    assert there.grad.unique().tolist() == [1.0]
    assert away.grad.unique().tolist() == [7.0]
    assert keeping.kept() == {}
