"""A restart with another scheme than its checkpoint's goes on by the one that was asked for, and loses nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from distroml.planner import Plan
from distroml.runtime.checkpoint import OWN
from distroml.runtime.compress import parse_scheme
from distroml.runtime.parallel.buckets import lay_out
from distroml.runtime.parallel.compressed import CompressedExchange
from distroml.runtime.parallel.keeping import Keeping
from distroml.runtime.parallel.residuals import own_state

PLAN = Plan(dp_replicate=2)
NAMED = [("weight", nn.Parameter(torch.zeros(8, 4)))]


class Seat:
    """A place in a group that nobody calls."""

    def rank(self) -> int:
        return 0

    def size(self) -> int:
        return 2


def exchange(scheme: str) -> CompressedExchange:
    group: Any = Seat()
    made = CompressedExchange(group, parse_scheme(scheme), seed=0, device=torch.device("cpu"))
    made.prepare(dict(enumerate(lay_out(NAMED, 1.0))))
    return made


@pytest.mark.parametrize("asked", ["int8", "sign", "powersgd:1"])
def test_by_the_scheme_that_was_asked_for(asked: str) -> None:
    before, now = exchange("int8"), exchange(asked)
    residual = torch.arange(32.0)
    before.buffers[0].keep(residual)
    keeping = Keeping(now, None, NAMED, plan=PLAN, rank=0, residuals="exact")
    assert keeping.keep({OWN: {"0": own_state(before, str(PLAN))}}, step=5)
    (buffer,) = now.buffers
    buffer.advance(6)
    assert buffer.scheme.name == asked
    assert torch.equal(buffer.kept(), residual)
    before.close()
    now.close()
