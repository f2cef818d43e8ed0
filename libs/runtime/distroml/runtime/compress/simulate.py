"""All ranks of an exchange in one process, in lockstep: for tests against the plain sum, and for planning."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import torch

from distroml.runtime.comm import sent_bytes
from distroml.runtime.compress.layout import Layout
from distroml.runtime.compress.scheme import Round, Scheme, State, Turn


class NotInStep(RuntimeError):
    """Ranks of one exchange wanted different rounds: real ranks would hang, or sum what does not belong together."""


@dataclass(slots=True)
class SimulatedRanks:
    """`world_size` ranks that exchange one buffer by a scheme, step after step."""

    scheme: Scheme
    layout: Layout
    world_size: int
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    bucket: int = 0
    step: int = 0
    states: list[State] = field(default_factory=lambda: list[State]())

    def __post_init__(self) -> None:
        if not self.states:
            ranks = range(self.world_size)
            self.states = [self.scheme.prepare(self.layout, self.world_size, self.device) for _ in ranks]

    def exchange(self, flats: Sequence[torch.Tensor], unit: float = 1.0) -> int:
        """One step's exchange of every rank's buffer, in place. Returns the bytes that one rank sent."""
        self.step += 1
        turns = [
            Turn(rank, self.world_size, self.step, self.bucket, self.seed, unit) for rank in range(self.world_size)
        ]
        generators = [
            self.scheme.rounds(flat, self.layout, state, turn)
            for flat, state, turn in zip(flats, self.states, turns, strict=True)
        ]
        return run_in_lockstep(generators)


def run_in_lockstep(generators: Sequence[Generator[Round, torch.Tensor]]) -> int:
    """Run the exchange of all ranks to its end. Returns the bytes that one rank sent. Raises `NotInStep`."""
    sent = 0
    rounds = _advance(generators, [None] * len(generators))
    while rounds:
        sent += sent_bytes(rounds[0].how, rounds[0].payload.nbytes, len(rounds))
        rounds = _advance(generators, exchanged(rounds))
    return sent


def exchanged(rounds: Sequence[Round]) -> list[torch.Tensor]:
    """What comes back to each rank of a round. Raises `NotInStep`."""
    kinds = {(one.how, one.payload.dtype, tuple(one.payload.shape)) for one in rounds}
    if len(kinds) > 1:
        raise NotInStep(f"the ranks of one round hand in different things: {sorted(map(str, kinds))}")
    payloads = [one.filled() for one in rounds]
    if any(payload.dim() != 1 or not payload.is_contiguous() for payload in payloads):
        raise NotInStep("a payload is 1-D and contiguous")
    if rounds[0].how == "sum":
        total = payloads[0].clone()
        for payload in payloads[1:]:
            total += payload
        return [total.clone() for _ in rounds]
    if rounds[0].how == "gather":
        gathered = torch.stack(payloads)
        return [gathered.clone() for _ in rounds]
    if payloads[0].numel() % len(rounds):
        raise NotInStep(f"{payloads[0].numel()} elements are not {len(rounds)} equal parts")
    scattered = torch.stack([payload.view(len(rounds), -1) for payload in payloads], dim=1)
    return [scattered[rank].clone() for rank in range(len(rounds))]


def _advance(
    generators: Sequence[Generator[Round, torch.Tensor]], answers: Sequence[torch.Tensor | None]
) -> list[Round]:
    """The next round of every rank; none where all have ended."""
    rounds: list[Round] = []
    for generator, answer in zip(generators, answers, strict=True):
        try:
            rounds.append(next(generator) if answer is None else generator.send(answer))
        except StopIteration:
            continue
    if rounds and len(rounds) != len(generators):
        raise NotInStep(f"{len(generators) - len(rounds)} of {len(generators)} ranks ended before the others")
    return rounds
