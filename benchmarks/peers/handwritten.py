"""What a careful user writes by hand for each plan of the example GPT, in plain PyTorch: the engine's peers.

Every peer's `step(batch)` takes this data-parallel rank's samples, makes one optimizer step and returns the mean loss
where it is known. All of them clip, use AdamW and read the loss, as the engine does.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "gpt"))

from model import GPT, VOCABULARY, Block, ModelConfig, loss

CLIP = 1.0


def _adamw(parameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)


class Ddp:
    """DistributedDataParallel."""

    def __init__(self, config: ModelConfig) -> None:
        torch.manual_seed(0)
        self.model = nn.parallel.DistributedDataParallel(GPT(config), gradient_as_bucket_view=True)
        self.optimizer = _adamw(self.model.parameters())

    def step(self, batch: torch.Tensor) -> float:
        self.optimizer.zero_grad()
        total, count = loss(self.model, batch)
        (total / count).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        return (total / count).item()


class Fsdp(Ddp):
    """FSDP2 around each block and the whole."""

    def __init__(self, config: ModelConfig) -> None:
        torch.manual_seed(0)
        self.model = GPT(config)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for block in self.model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self.optimizer = _adamw(self.model.parameters())


class _SplitBlock(Block):
    """The block with q, k and v apart, so that each can be split by heads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.q, self.k, self.v = (nn.Linear(config.width, config.width, bias=False) for _ in range(3))
        del self.qkv
        self.head_width = config.width // config.heads

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        B, T, _ = x_BTD.shape
        h_BTD = self.norm_1(x_BTD)
        q, k, v = (one(h_BTD).view(B, T, -1, self.head_width).transpose(1, 2) for one in (self.q, self.k, self.v))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.out(seen.transpose(1, 2).reshape(B, T, -1))
        return x_BTD + self.down(F.gelu(self.up(self.norm_2(x_BTD))))


class Tensor(Ddp):
    """DTensor tensor parallelism of a model whose projections were taken apart by hand."""

    def __init__(self, config: ModelConfig) -> None:
        torch.manual_seed(0)
        self.model = GPT(config)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for number in range(config.layers):
            self.model.blocks[number] = _SplitBlock(config)
            columns = dict.fromkeys(("q", "k", "v", "up"), ColwiseParallel())
            rows = dict.fromkeys(("out", "down"), RowwiseParallel())
            parallelize_module(self.model.blocks[number], mesh, {**columns, **rows})
        # One mesh for all parameters, so that norms can be taken over them together.
        parallelize_module(self.model, mesh, {})
        self.optimizer = _adamw(self.model.parameters())

    def step(self, batch: torch.Tensor) -> float:
        self.optimizer.zero_grad()
        total, count = loss(self.model, batch)
        (total / count).backward()
        sharded = [p for p in self.model.parameters() if hasattr(p, "placements")]
        whole = [p for p in self.model.parameters() if not hasattr(p, "placements")]
        norms = [nn.utils.get_total_norm([p.grad for p in some]) for some in (sharded, whole)]
        norm = torch.stack([n.full_tensor() if hasattr(n, "full_tensor") else n for n in norms]).norm()
        for some in (sharded, whole):
            nn.utils.clip_grads_with_norm_(some, CLIP, norm)
        self.optimizer.step()
        return (total / count).item()


class _Stage(nn.Module):
    def __init__(self, model: GPT, first: bool, last: bool, blocks: slice) -> None:
        super().__init__()
        self.bytes, self.places = (model.bytes, model.places) if first else (None, None)
        self.blocks = nn.ModuleList(model.blocks[blocks])
        self.norm, self.head = (model.norm, model.head) if last else (None, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.bytes is not None and self.places is not None:
            x = self.bytes(x) + self.places(torch.arange(x.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)) if self.head is not None else x


class Pipeline:
    """Two or more stages under 1F1B."""

    def __init__(self, config: ModelConfig, microbatches: int, microbatch: int) -> None:
        torch.manual_seed(0)
        rank, world_size = dist.get_rank(), dist.get_world_size()
        per = config.layers // world_size
        self.first, self.last = rank == 0, rank == world_size - 1
        self.model = _Stage(GPT(config), self.first, self.last, slice(rank * per, (rank + 1) * per))
        tokens = torch.zeros(microbatch, config.context, dtype=torch.long, device="meta")
        hidden = torch.zeros(microbatch, config.context, config.width, device="meta", requires_grad=True)
        logits = torch.zeros(microbatch, config.context, VOCABULARY, device="meta", requires_grad=True)
        stage = PipelineStage(
            self.model,
            rank,
            world_size,
            torch.device("cpu"),
            input_args=(tokens if self.first else hidden,),
            output_args=(logits if self.last else hidden,),
        )
        self.schedule = Schedule1F1B(stage, microbatches, loss_fn=self._loss, scale_grads=True)
        self.optimizer = _adamw(self.model.parameters())

    @staticmethod
    def _loss(logits_BTV: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits_BTV.reshape(-1, VOCABULARY), targets_BT.reshape(-1))

    def step(self, batch: torch.Tensor) -> float:
        self.optimizer.zero_grad()
        inputs, targets = batch[:, :-1].long(), batch[:, 1:].long()
        losses: list[torch.Tensor] = []
        if self.first:
            self.schedule.step(inputs)
        elif self.last:
            self.schedule.step(target=targets, losses=losses)
        else:
            self.schedule.step()
        squared = torch.stack([p.grad.pow(2).sum() for p in self.model.parameters()]).sum()
        dist.all_reduce(squared)
        nn.utils.clip_grads_with_norm_(list(self.model.parameters()), CLIP, squared.sqrt())
        self.optimizer.step()
        return torch.stack(losses).mean().item() if losses else float("nan")
