"""What each rank of the pool does for tests of what a spread model does beside training: outputs, losses, text."""

from __future__ import annotations

from typing import Any

import torch

from distroml.runtime.elastic import World
from distroml.runtime.parallel import ParallelModel, parallelize
from libs.runtime.tests.parallel.models import Quirks, loss, make, samples
from libs.runtime.tests.parallel.ranks import GLOBAL_BATCH, SEED, part_of, spread
from tests.numerics.zoo import BY_NAME
from tests.numerics.zoo import loss as zoo_loss


def _text(model: Any, prompt: torch.Tensor, **options: Any) -> list[list[int]]:
    model.eval()
    return model.generate(prompt, **{"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, **options}).tolist()


def _spread(world: World, plan: str, name: str) -> ParallelModel:
    architecture = BY_NAME[name]
    sample = architecture.batch(2, seed=1)
    return parallelize(architecture.make, plan, world=world, loss=zoo_loss, sample=sample, seed=SEED)


def generate(world: World, plan: str, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Text that a Hugging Face model goes on with under `plan`, beside what it says alone; or "raised"."""
    architecture = BY_NAME[name]
    prompt = architecture.batch(2, seed=1)["input_ids"][:, :5]
    parallel = _spread(world, plan, name)
    try:
        text = _text(parallel.module, prompt, **options)
    except (ValueError, RuntimeError) as error:
        return {"raised": str(error)}
    finally:
        parallel.close()
    torch.manual_seed(SEED)
    return {"text": text, "alone": _text(architecture.make(), prompt, **options)}


def generate_after_training(world: World, plan: str, name: str) -> list[list[int]]:
    """Sampled text after a step, which seeds the stages of a pipeline apart."""
    architecture = BY_NAME[name]
    batch = architecture.batch(2, seed=1)
    parallel = _spread(world, plan, name)
    parallel.finish(parallel.forward_backward([batch], 1))
    text = _text(parallel.module, batch["input_ids"][:, :5], do_sample=True, temperature=5.0)
    parallel.close()
    return text


def generate_unequal(world: World, plan: str, name: str) -> dict[str, Any]:
    """Each rank goes on with a prompt of its own, of its own length, and ends where the text ends."""
    architecture = BY_NAME[name]
    prompt = architecture.batch(1, seed=10 + world.rank)["input_ids"][:, : 3 + world.rank]
    torch.manual_seed(SEED)
    alone = _text(architecture.make(), prompt, max_new_tokens=8)[0]
    # The last rank ends with its second token, the others go on.
    end = alone[prompt.shape[1] + 1] if world.rank == world.world_size - 1 else None
    options = {"max_new_tokens": 8, "eos_token_id": end, "pad_token_id": 0}
    torch.manual_seed(SEED)
    right = _text(architecture.make(), prompt, **options)
    parallel = _spread(world, plan, name)
    text = _text(parallel.module, prompt, **options)
    parallel.close()
    return {"text": text, "alone": right}


def measure(world: World, plan: str) -> dict[str, Any]:
    """Losses and outputs without gradients, before and after the optimizer's step, beside those of the lone model."""
    parallel = spread(world, plan, Quirks(), 2)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.5)
    torch.manual_seed(SEED)
    lone = make(Quirks())
    lone_optimizer = torch.optim.SGD(lone.parameters(), lr=0.5)
    # Samples of another number and length than any of training.
    other = {name: value[:3, :4] if value.dim() > 1 else value[:3] for name, value in samples(8, 7).items()}
    share = GLOBAL_BATCH // parallel.mesh.dp_size
    start = parallel.mesh.dp_rank * share
    whole = samples(GLOBAL_BATCH, 100)
    parallel.finish(parallel.forward_backward([part_of(whole, start, start + share)], 1))
    total, count = loss(lone, whole)
    (total / count).backward()
    found: dict[str, Any] = {"loss": [], "count": [], "output": []}
    for _ in range(2):
        parallel.module.eval()
        told, terms = parallel.measure(other)
        sums = torch.tensor([float(told), float(terms)], dtype=torch.float64)
        parallel.collectives.sum_async(sums).wait()
        with torch.no_grad():
            output = parallel(other["tokens"])
            right, right_terms = loss(lone, other)
            found["output"].append(float((output - lone(other["tokens"])).abs().max()))
        # Each data-parallel rank was given the same samples.
        found["loss"].append(abs(float(sums[0]) / (float(right) * parallel.mesh.dp_size) - 1))
        found["count"].append(float(sums[1]) / (int(right_terms) * parallel.mesh.dp_size))
        parallel.module.train()
        optimizer.step()
        lone_optimizer.step()
    parallel.close()
    return found
