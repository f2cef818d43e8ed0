"""Train a small GPT on the source text of Python's own standard library.

python train.py                              one process
torchrun --nproc-per-node 2 train.py         two, by torchrun
distroml run --workers 2 train.py            two, on DistroML: survives the loss of a worker
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
from pathlib import Path

import torch
from config import Config, TrainingConfig, read_config
from corpus import Corpus, Windows, read_corpus
from model import GPT, generate, loss

from distroml.runtime import DataLoader, FitResult, Trainer

HERE = Path(__file__).parent


def learning_rate_factor(training: TrainingConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to the final rate."""
    if step < training.warmup_steps:
        return (step + 1) / training.warmup_steps
    done = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    floor = training.final_learning_rate / training.learning_rate
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def make_trainer(config: Config, corpus: Corpus) -> Trainer[torch.Tensor]:
    training, context = config.training, config.model.context
    return Trainer(
        model_factory=lambda: GPT(config.model),
        optimizer=lambda parameters: torch.optim.AdamW(
            parameters, lr=training.learning_rate, betas=(0.9, 0.95), weight_decay=training.weight_decay
        ),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(training, step)
        ),
        loss=loss,
        data=DataLoader(Windows(corpus.train, context), training.global_batch, seed=config.seed, collate=torch.stack),
        eval_data=DataLoader(
            Windows(corpus.held_out, context, config.evaluation.windows),
            config.evaluation.global_batch,
            shuffle=False,
            collate=torch.stack,
        ),
        steps=training.steps,
        checkpoint_every=training.checkpoint_every,
        grad_clip=training.grad_clip,
        seed=config.seed,
    )


def finish(config: Config, corpus: Corpus, trainer: Trainer[torch.Tensor], result: FitResult, out: Path) -> None:
    """Show a sample, and write what a reader of the run wants to know."""
    assert isinstance(trainer.model, GPT)
    sample = generate(
        trainer.model,
        config.sample.prompt.encode(),
        config.sample.length,
        temperature=config.sample.temperature,
        seed=config.seed,
    ).decode("utf-8", errors="replace")
    print(f"--- sample\n{sample}\n--- end of sample", flush=True)
    held_out = result.eval["loss"] if result.eval else None
    body = {
        "steps": result.step,
        "final_loss": result.loss,
        "heldout_loss": held_out,
        "world_size": result.world_size,
        "generation": result.generation,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "fingerprint": result.fingerprint,
        "dataset_fingerprint": corpus.fingerprint,
        "dataset_files": corpus.files,
        "sample": sample,
        "config": dataclasses.asdict(config),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(body, indent=2) + "\n")
    print(f"held-out loss {held_out:.4f}; result: {out / 'result.json'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=HERE / "gpt.toml")
    parser.add_argument("--steps", type=int, help="override the configuration's number of steps")
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("DISTROML_OUT", ".")), help="folder for result.json"
    )
    arguments = parser.parse_args()
    config = read_config(arguments.config)
    if arguments.steps is not None:
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, steps=arguments.steps))
    corpus = read_corpus()
    trainer = make_trainer(config, corpus)
    if trainer.is_main:
        print(
            f"data: {corpus.files} files, {len(corpus.train):,} bytes to train on, "
            f"{len(corpus.held_out):,} held out, fingerprint {corpus.fingerprint}",
            flush=True,
        )
    result = trainer.fit()
    if trainer.is_main:
        finish(config, corpus, trainer, result, arguments.out)


if __name__ == "__main__":
    main()
