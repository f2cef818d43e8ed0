"""What a user may get wrong, and what each rank of the pool is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from distroml.runtime.elastic import World
from distroml.runtime.parallel import PlanRefused, parallelize
from libs.runtime.tests.parallel.models import Batch, Quirks, Reader, loss, samples
from libs.runtime.tests.parallel.ranks import GLOBAL_BATCH, part_of
from libs.runtime.tests.tensor.zoo import Careless


class Deciding(Reader):
    """Takes a way that depends on values."""

    def forward(self, tokens: torch.Tensor, late: bool = False) -> torch.Tensor:
        logits = super().forward(tokens, late)
        return logits if float(logits.sum()) > 1e9 else self.blocks[0](self.embed(tokens)) @ self.head.weight.T


class SharedBlock(Reader):
    """One block stands in two places."""

    def __init__(self, quirks: Quirks) -> None:
        super().__init__(quirks)
        self.blocks[3] = self.blocks[0]


class Flat(nn.Module):
    """No blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 11)

    def forward(self, tokens: torch.Tensor, late: bool = False) -> torch.Tensor:
        return self.table(tokens)


class Heads(Careless):
    """Four heads."""

    def forward(self, tokens: torch.Tensor, late: bool = False) -> torch.Tensor:
        return super().forward(tokens)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: Reader(Quirks()),
    "deciding": lambda: Deciding(Quirks()),
    "shared": lambda: SharedBlock(Quirks()),
    "flat": Flat,
    "heads": Heads,
}


def _sample(kind: str) -> Any:
    batch = part_of(samples(GLOBAL_BATCH, 1), 0, 2)
    match kind:
        case "words":
            return {**batch, "tokens": batch["tokens"].double()}
        case "short":
            return {**batch, "targets": batch["targets"][:, 1:]}
        case "lacking":
            return {"number": batch["number"]}
        case _:
            return batch


def refused(
    world: World, plan: str, model: str = "plain", sample: str = "good", global_batch: int = 8, microbatch: int = 2
) -> str:
    """What `parallelize` says."""

    def odd(module: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return loss(module, batch)

    try:
        parallelize(
            KINDS[model],
            plan,
            world=world,
            loss=odd,
            sample=_sample(sample),
            global_batch=global_batch,
            microbatch=microbatch,
        )
    except PlanRefused as error:
        return str(error)
    return ""
