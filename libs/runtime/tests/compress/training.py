"""Small problems that several ranks solve in one process, each with samples of its own."""

from collections.abc import Callable

import torch
from torch import nn

from distroml.runtime.compress import Layout, SimulatedRanks
from libs.runtime.tests.compress.tiny import laid_out


class LeastSquares:
    """Rows of targets from rows of inputs; every rank's inputs and targets have a distribution of their own."""

    def __init__(self, ranks: int = 4) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        true = random(40, 32)
        self.inputs = [random(64, 40) * random(40).exp().clamp(0.2, 2.0) for _ in range(ranks)]
        self.targets = [one @ (true + random(40, 32)) for one in self.inputs]
        self.layout = laid_out([(40, 32)], gap=0)
        self.unit = float(64 * ranks)
        whole, wanted = torch.cat(self.inputs).double(), torch.cat(self.targets).double()
        self.best = self.loss(torch.linalg.lstsq(whole, wanted).solution.float().flatten())
        self.lr = 1.0 / torch.linalg.matrix_norm(whole.mT @ whole / self.unit, 2).item()

    def loss(self, weight: torch.Tensor) -> float:
        """Mean over all samples of the squared error's half."""
        whole, wanted = torch.cat(self.inputs), torch.cat(self.targets)
        return ((whole @ weight.view(40, 32) - wanted).square().sum() / 2 / self.unit).item()

    def gradients(self, weight: torch.Tensor) -> list[torch.Tensor]:
        """Of every rank, summed over its samples."""
        matrix = weight.view(40, 32)
        return [(x.mT @ (x @ matrix - y)).flatten() for x, y in zip(self.inputs, self.targets, strict=True)]

    def excess(self, scheme, steps: int, *, feedback: bool = True) -> float:
        """How much loss gradient descent from zero leaves above the best, as a share of what there was at first."""
        ranks = SimulatedRanks(scheme, self.layout, len(self.inputs))
        weight = torch.zeros(self.layout.numel)
        first = self.loss(weight)
        for _ in range(steps):
            flats = self.gradients(weight)
            ranks.exchange(flats, self.unit)
            weight -= self.lr * flats[0] / self.unit
            if not feedback:
                for state in ranks.states:
                    state.residual, state.owned = None, None
        return (self.loss(weight) - self.best) / (first - self.best)


def trained(
    model: nn.Module,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    scheme,
    *,
    ranks: int,
    steps: int,
    batch: int,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
) -> tuple[float, int]:
    """Train a classifier; returns its mean loss on all samples at the end, and bytes that one rank sent."""
    parameters = list(model.parameters())
    layout = laid_out([tuple(parameter.shape) for parameter in parameters])
    simulated, stepper, sent = SimulatedRanks(scheme, layout, ranks), optimizer(parameters), 0
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        chosen = torch.randperm(len(inputs), generator=generator)[:batch].chunk(ranks)
        flats = [_gradient(model, layout, inputs[part], targets[part]) for part in chosen]
        sent += simulated.exchange(flats, float(batch))
        for parameter, piece in zip(parameters, layout.pieces, strict=True):
            parameter.grad = (flats[0][piece.offset : piece.offset + piece.numel] / batch).view(piece.shape)
        stepper.step()
    with torch.no_grad():
        return nn.functional.cross_entropy(model(inputs), targets).item(), sent


def _gradient(model: nn.Module, layout: Layout, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    nn.functional.cross_entropy(model(inputs), targets, reduction="sum").backward()
    flat = torch.zeros(layout.numel)
    for parameter, piece in zip(model.parameters(), layout.pieces, strict=True):
        flat[piece.offset : piece.offset + piece.numel] = parameter.grad.flatten()
    return flat
