"""A tiny training under Trainer, with scripted faults. Reads one JSON argument; appends one JSON line per step."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.distributed as dist
from reported_link import reported
from torch import nn

from distroml.runtime import DGC, DataLoader, OneBitAdam, StepInfo, Trainer
from distroml.runtime.compress import Round

wanted = {
    "out": ".",
    "steps": 12,
    "checkpoint_every": 3,
    "global_batch": 14,
    "size": 64,
    "microbatch": 5,
    "dtype": "float32",
    "step_s": 0.0,
    "dropout": 0.1,
    "batch_norm": True,
    "plan": None,
    "compress": "none",
    "residuals": "folded",
    "sync_every": None,
    # Seconds per byte that links are said to take, by the step from which on; {}: as measured.
    "link": {},
    # "adamw", "onebit" or "dgc"
    "optimizer": "adamw",
    # Above 0: a model with a chain of so many blocks, which plans can divide.
    "blocks": 0,
    "without_checkpoint": "restart",
    # {"rank", "generation", "step", "do": "kill", "kill in an exchange", "stop", "raise", "allocate", "nan" or "inf",
    #  "after": file to wait for}
    "fault": None,
    # Wait before each save until the one before it is committed, so that none is passed over.
    "paced": True,
    **json.loads(sys.argv[1]),
}
torch.set_num_threads(1)
links = ExitStack()
if wanted["link"]:
    links.enter_context(reported({int(step): s_per_byte for step, s_per_byte in wanted["link"].items()}))
out = Path(wanted["out"])
dtype = getattr(torch, wanted["dtype"])


class Numbers:
    def __init__(self, size: int, start: int = 0) -> None:
        generator = torch.Generator().manual_seed(7 + start)
        self.x = torch.randn(size, 8, generator=generator, dtype=dtype)
        self.y = torch.sin(self.x.sum(1, keepdim=True))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index], self.y[index]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.drop = nn.Dropout(wanted["dropout"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.drop(torch.tanh(self.up(x))))


class Chained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(8, 32), nn.Linear(32, 1)
        self.blocks = nn.ModuleList(Block() for _ in range(wanted["blocks"]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return self.leave(x)


def make_model() -> nn.Module:
    if wanted["blocks"]:
        return Chained().to(dtype)
    return nn.Sequential(
        nn.Linear(8, 32),
        nn.Dropout(wanted["dropout"]),
        nn.BatchNorm1d(32) if wanted["batch_norm"] else nn.Identity(),
        nn.Tanh(),
        nn.Linear(32, 32),
        nn.Linear(32, 1),
    ).to(dtype)


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, int]:
    fault = wanted["fault"]
    world = trainer.world
    here = fault and (fault["rank"], fault["generation"]) == (world.rank, world.generation) and model.training
    if here and reached["step"] + 1 == fault["step"]:
        do_fault(fault["do"])
        if fault["do"] == "nan":
            return (model(batch[0]) * float("nan")).sum(), len(batch[0])
        if fault["do"] == "inf":
            # The loss is a number, one parameter's gradient none.
            model.enter.weight.register_hook(lambda gradient: gradient * float("inf"))
    return ((model(batch[0]) - batch[1]) ** 2).sum(), len(batch[0])


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.005)


def do_fault(what: str) -> None:
    if "after" in wanted["fault"]:
        wait_until((out / wanted["fault"]["after"]).exists, wanted["fault"]["after"])
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "kill in an exchange":
        die_in_a_round()
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "raise":
        raise KeyError("the user's own mistake")
    elif what == "allocate":
        torch.empty(1 << 50, dtype=torch.uint8)


def die_in_a_round() -> None:
    """The next code that this rank is to tell, it doesn't: it has heard the others', which wait for its own."""
    peers = trainer._run.parallel.exchange._peers

    def dying(wanted: Round) -> torch.Tensor:
        heard = torch.empty_like(wanted.payload).view(torch.uint8)
        dist.recv(heard, group=peers.group, group_src=(peers.rank - 1) % peers.world_size)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")

    peers.make = dying


reached = {"step": 0}


def note(info: StepInfo) -> None:
    reached["step"] = info.step
    world = trainer.world
    line = {
        "pid": os.getpid(), "generation": world.generation, "rank": world.rank, "world": world.world_size,
        "step": info.step, "epoch": info.epoch, "from": info.sample_from, "to": info.sample_to,
        "loss": info.loss, "grad_norm": info.grad_norm,
    }  # fmt: skip
    with open(out / f"steps-{os.getpid()}.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")
    time.sleep(wanted["step_s"])
    if wanted["paced"] and (info.step + 1) % wanted["checkpoint_every"] == 0:
        wait_until(lambda: not trainer._run._saves.busy, "the end of the save before")


MAKE = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    "onebit": lambda parameters: OneBitAdam(parameters, lr=1e-2, warm_up_steps=4),
    "dgc": lambda parameters: DGC(parameters, lr=1e-2, clip=1.0, warm_up_steps=8),
}
trainer = Trainer(
    model_factory=make_model,
    optimizer=MAKE[wanted["optimizer"]],
    lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + 0.1 * step)),
    loss=loss,
    data=DataLoader(Numbers(wanted["size"]), wanted["global_batch"], microbatch=wanted["microbatch"], seed=3),
    eval_data=DataLoader(Numbers(20, 1), 8, shuffle=False),
    steps=wanted["steps"],
    checkpoint_every=wanted["checkpoint_every"],
    checkpoint_dir=out / "checkpoints",
    grad_clip=1.0 if wanted["optimizer"] == "adamw" else None,
    seed=11,
    plan=wanted["plan"],
    compress=wanted["compress"],
    residuals=wanted["residuals"],
    sync_every=wanted["sync_every"],
    without_checkpoint=wanted["without_checkpoint"],
    callbacks=[note],
    device="cpu",
)
result = trainer.fit()


def absolute_error(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, int]:
    return (model(batch[0]) - batch[1]).abs().sum(), len(batch[0])


scores = trainer.evaluate(metrics={"mae": absolute_error})
state = trainer.full_parameters() if wanted["blocks"] else trainer.model.state_dict()
if trainer.is_main:
    body = {
        "parameters": {name: t.detach().double().flatten().tolist() for name, t in state.items()},
        "fingerprint": result.fingerprint, "step": result.step, "eval": result.eval, "scores": scores,
        "generation": result.generation, "world": result.world_size,
    }  # fmt: skip
    (out / "result.json").write_text(json.dumps(body))
