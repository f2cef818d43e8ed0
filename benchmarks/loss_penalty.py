"""How many more steps each scheme of the ladder takes to a loss, and what the guards see while it is healthy.

Two ranks in one process train the example GPT, each on its half of every batch, over all gradients in one bucket. The
dense run's smoothed loss at its last step is the mark; a scheme's extra steps are those beyond the dense run's until
its own smoothed loss reaches it. Every seed is another order of the data, the same for all schemes. Printed are rows as
`distroml.runtime.compress.control.penalties.LADDER` has them: extra steps as mean over the seeds, the largest ratio of
residual to gradient and the smallest cosine to the dense sum of any step after the first twenty, each with a margin.
The steps that stand in the table are of real ranks, by `time_to_loss.py --curves`.

    OMP_NUM_THREADS=2 python benchmarks/loss_penalty.py [--steps 400] [--seeds 3] [--schemes int8,powersgd:4+int8]

It takes hours at full size; `--quick` trains a small model for a few steps, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from distroml.runtime.compress import Layout, Piece, SimulatedRanks
from distroml.runtime.compress.control import LADDER
from distroml.runtime.compress.parse import parse_scheme

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "gpt"))
import model as gpt
from config import Config, ModelConfig, read_config
from corpus import Windows, read_corpus

RANKS = 2
SMOOTHED = 20
MARGIN = 2.0
# A scheme that has not arrived after so many times the dense run's steps does not arrive.
MOST = 2.0


@dataclass(frozen=True)
class Course:
    """One training: the smoothed loss after every step, and what guards would have seen."""

    losses: list[float]
    ratio: float
    cosine: float

    def steps_to(self, mark: float) -> float:
        """The first step whose smoothed loss is at most `mark`; infinite where there is none."""
        return next((step for step, loss in enumerate(self.losses, 1) if loss <= mark), math.inf)


def train(scheme: str, config: Config, windows: Windows, steps: int, seed: int, mark: float | None = None) -> Course:
    """Train for `steps`, or until the smoothed loss is at most `mark`."""
    torch.manual_seed(config.seed + seed)
    module = gpt.GPT(config.model)
    parameters = list(module.parameters())
    pieces, offset = [], 0
    for name, parameter in module.named_parameters():
        pieces.append(Piece(name, offset, tuple(parameter.shape)))
        offset += parameter.numel()
    ranks = SimulatedRanks(parse_scheme(scheme), Layout(offset, tuple(pieces)), RANKS, seed=seed)
    optimizer = torch.optim.AdamW(parameters, lr=config.training.learning_rate, weight_decay=0.1)
    order = torch.Generator().manual_seed(seed)
    losses, recent, ratio, cosine = [], [], 0.0, 1.0
    for step in range(steps):
        chosen = torch.randint(len(windows), (config.training.global_batch,), generator=order).tolist()
        batch = torch.stack([windows[index] for index in chosen])
        flats, total, terms = [], 0.0, 0
        for part in batch.chunk(RANKS):
            summed, count = gpt.loss(module, part)
            flats.append(torch.cat([one.flatten() for one in torch.autograd.grad(summed, parameters)]))
            total, terms = total + summed.item(), terms + int(count)
        dense = torch.stack(flats).sum(0)
        squares = sum(float(flat.norm()) ** 2 for flat in flats)
        ranks.exchange(flats, float(terms))
        if step >= SMOOTHED:
            kept = [one for state in ranks.states for one in (state.residual, state.owned) if one is not None]
            residual = math.sqrt(sum(float(one.norm()) ** 2 for one in kept))
            gradient = math.sqrt(squares) / terms
            ratio = max(ratio, residual / gradient)
            cosine = min(cosine, float(torch.cosine_similarity(flats[0], dense, dim=0)))
        mean = flats[0] / terms
        mean *= min(1.0, config.training.grad_clip / (float(mean.norm()) + 1e-6))
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = mean[piece.offset : piece.offset + piece.numel].view(piece.shape)
        optimizer.step()
        recent = [*recent, total / terms][-SMOOTHED:]
        losses.append(statistics.fmean(recent) if len(recent) == SMOOTHED else math.inf)
        if mark is not None and losses[-1] <= mark:
            break
    return Course(losses, ratio, cosine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of the dense run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--schemes", default=",".join(rung.scheme for rung in LADDER[1:]))
    parser.add_argument("--quick", action="store_true", help="a small model and few steps; the figures mean nothing")
    arguments = parser.parse_args()
    config = read_config(Path(__file__).parents[1] / "examples" / "gpt" / "gpt.toml")
    if arguments.quick:
        small = ModelConfig(layers=1, width=32, heads=2, context=32)
        config = replace(config, model=small, training=replace(config.training, global_batch=4))
        arguments.steps, arguments.seeds = 30, 1
    windows = Windows(read_corpus().train, config.model.context)
    seeds = range(arguments.seeds)
    dense = [train("none", config, windows, arguments.steps, seed) for seed in seeds]
    print(f"dense: smoothed loss {[round(course.losses[-1], 4) for course in dense]} after {arguments.steps} steps")
    for scheme in arguments.schemes.split(","):
        most = round(MOST * arguments.steps)
        courses = [train(scheme, config, windows, most, seed, dense[seed].losses[-1]) for seed in seeds]
        needed = [course.steps_to(one.losses[-1]) for one, course in zip(dense, courses, strict=True)]
        taken = [steps / arguments.steps - 1 for steps in needed]
        extra = statistics.fmean(taken)
        ratio = MARGIN * max(course.ratio for course in courses)
        cosine = min(course.cosine for course in courses) / MARGIN
        shown = f"{max(0.0, extra):.3f}" if math.isfinite(extra) else "math.inf"
        print(f'    Rung("{scheme}", {shown}, {ratio:.3g}, {cosine:.2f}),', flush=True)


if __name__ == "__main__":
    main()
