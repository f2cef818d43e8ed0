"""What ranks exchange in place of gradients, where one of these is no finite number."""

from __future__ import annotations

import torch
from torch import nn

from distroml.runtime.compress import parse_scheme
from distroml.runtime.compress.optim import DGC
from distroml.runtime.parallel.buckets import lay_out
from distroml.runtime.parallel.compressed import CompressedExchange
from distroml.runtime.parallel.substitutes import substitute_of
from distroml.runtime.typed import norm_of

CPU = torch.device("cpu")


def test_a_broken_gradient_does_not_reach_the_velocities_of_other_buckets_by_the_clipping() -> None:
    """The norm by which a rank clips is of all its gradients, also of one in a bucket that is exchanged later."""
    named = [(name, nn.Parameter(torch.ones(4))) for name in ("broken", "fine")]
    optimizer = DGC([parameter for _, parameter in named], lr=0.1, clip=1.0)
    exchange = CompressedExchange(None, parse_scheme("topk:0.5"), seed=0, device=CPU)
    specs = lay_out(named, 1e-6)
    exchange.prepare(dict(enumerate(specs)))
    exchange.substitute = substitute_of(optimizer, named, world_size=1)
    for step, gradient in ((1, 2.0), (2, torch.nan), (3, 2.0)):
        flats = [torch.ones(specs[0].numel), torch.full((specs[1].numel,), gradient)]
        exchange.open(step)
        pending = [exchange.begin(number, spec, flats[number]) for number, spec in enumerate(specs)]
        terms = torch.tensor(8.0, dtype=torch.float64)
        exchange.substitute.ready(lambda flats=flats: norm_of(torch.cat(flats)), terms)
        exchange.counted(terms)
        for one in pending:
            one.wait()
        told = [str(one) for one in exchange.non_finite]
        assert told == (["rank 0 has a gradient of broken that is no finite number in step 2"] if step == 2 else [])
        assert all(buffer.velocity is None or buffer.velocity.isfinite().all() for buffer in exchange.buffers)
        assert flats[0].isfinite().all()
    exchange.close()
