"""Step time of `Trainer` against a hand-written torch DDP loop of the same GPT, in the same two processes.

Blocks of ten steps alternate (Trainer, DDP; the order within a pair swaps from pair to pair), so that both see the
same neighbours, caches and clock. Reported: the median over pairs of Trainer / DDP, its spread, the A/A spread of
DDP against itself by the same procedure, and the same in CPU time of both processes with all their threads.
Telemetry runs as in a job: into a real unix socket that somebody reads.

    python benchmarks/trainer_vs_ddp.py [--pairs 30] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from _pairs import compare, summary

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "gpt"))

from config import Config, read_config
from corpus import Corpus, Windows, read_corpus
from model import GPT, loss

WORLD_SIZE = 2
STEPS = 10


class HandWritten:
    """What a careful user writes: DDP, mean loss, clipping, AdamW, a shuffled sampler's indices, a logged loss."""

    def __init__(self, config: Config, corpus: Corpus, rank: int) -> None:
        torch.manual_seed(config.seed)
        self.model = torch.nn.parallel.DistributedDataParallel(GPT(config.model), gradient_as_bucket_view=True)
        training = config.training
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=training.learning_rate, betas=(0.9, 0.95), weight_decay=training.weight_decay
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)
        self.windows = Windows(corpus.train, config.model.context)
        self.order = torch.randperm(len(self.windows), generator=torch.Generator().manual_seed(config.seed)).tolist()
        self.batch = training.global_batch // WORLD_SIZE
        self.at = rank * self.batch
        self.clip = training.grad_clip
        self.losses: list[float] = []

    def block(self) -> None:
        for _ in range(STEPS):
            indices = self.order[self.at : self.at + self.batch]
            self.at += WORLD_SIZE * self.batch
            batch = torch.stack([self.windows[index] for index in indices])
            total, count = loss(self.model, batch)
            mean = total / count
            self.optimizer.zero_grad()
            mean.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()
            self.scheduler.step()
            self.losses.append(mean.item())


class Managed:
    """The same under `Trainer`'s own run object: real steps, votes, reports and heartbeats."""

    def __init__(self, config: Config, corpus: Corpus) -> None:
        from distroml.runtime import DataLoader, Trainer

        training = config.training
        self.trainer = Trainer(
            model_factory=lambda: GPT(config.model),
            optimizer=lambda parameters: torch.optim.AdamW(
                parameters, lr=training.learning_rate, betas=(0.9, 0.95), weight_decay=training.weight_decay
            ),
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
            loss=loss,
            data=DataLoader(
                Windows(corpus.train, config.model.context),
                training.global_batch,
                seed=config.seed,
                collate=torch.stack,
            ),
            steps=1_000_000,
            grad_clip=training.grad_clip,
            seed=config.seed,
            device="cpu",
        )
        self.steps = self.trainer.steps()

    def block(self) -> None:
        for _ in range(STEPS):
            next(self.steps)


def work(rank: int, config: Config, count: int, link: str, answer: Any, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD_SIZE), MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True", DISTROML_LINK=link, DISTROML_WORKER=f"bench.{rank}",
        DISTROML_GENERATION="1", DISTROML_JOB="bench",
    )  # fmt: skip
    corpus = read_corpus()
    managed = Managed(config, corpus)
    managed.block()
    hand = HandWritten(config, corpus, rank)
    hand.block()
    found = compare(managed.block, hand.block, count, STEPS)
    same = compare(hand.block, hand.block, max(min(10, count), count // 3), STEPS)
    if rank == 0:
        answer.put(
            {
                "pairs": count,
                "steps_per_block": STEPS,
                "ddp_step_s": statistics.median(found.wall_s),
                "wall": summary(found.wall),
                "cpu": summary(found.cpu),
                "aa_wall": summary(same.wall),
                "aa_cpu": summary(same.cpu),
            }
        )
    managed.trainer.close()


def read_all(listener: socket.socket) -> None:
    """An agent that reads what it is told."""

    def drain(connection: socket.socket) -> None:
        while connection.recv(1 << 16):
            pass

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=drain, args=(connection,), daemon=True).start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="two pairs; rough figures")
    arguments = parser.parse_args()
    config = read_config(Path(__file__).parents[1] / "examples" / "gpt" / "gpt.toml")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "link.sock")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        threading.Thread(target=read_all, args=(listener,), daemon=True).start()
        store = dist.TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)
        context = mp.get_context("spawn")
        answer = context.SimpleQueue()
        workers = [
            context.Process(
                target=work, args=(rank, config, 2 if arguments.quick else arguments.pairs, path, answer, store.port)
            )
            for rank in range(WORLD_SIZE)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            sys.exit("a worker failed")
        result = answer.get()
    print(f"{result['pairs']} pairs of {STEPS}-step blocks, DDP {1e3 * result['ddp_step_s']:.0f} ms per step")
    labels = {"wall": "Trainer/DDP wall", "aa_wall": "DDP/DDP wall", "cpu": "Trainer/DDP CPU", "aa_cpu": "DDP/DDP CPU"}
    for kind, label in labels.items():
        row = result[kind]
        print(
            f"{label:17}  median {row['median']:.4f} +- {row['median_error']:.4f}   "
            f"quartiles {row['q1']:.4f} .. {row['q3']:.4f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
