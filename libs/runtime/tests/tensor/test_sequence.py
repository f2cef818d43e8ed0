"""Hidden states divided along the sequence: what is proved, what is refused, and that it trains as one process does."""

import weakref

import pytest
import torch
from torch import nn

from distroml.runtime.parallel.tensor import NoSequencePlan, TensorPlan, choose_tensor_plan
from distroml.runtime.parallel.tensor.apply import hook_modules
from distroml.runtime.parallel.tensor.parts import OwnPartUsed
from distroml.runtime.parallel.tensor.plan import Door
from distroml.runtime.parallel.tensor.sequence import NotDivisible, own_sizes, stretch_type
from distroml.runtime.parallel.tensor.simulate import LoneRank
from distroml.runtime.profile import find_chain, profile
from libs.runtime.tests.tensor.zoo import BY_NAME, Careless, example, loss, made
from tests.numerics.pool import Pool
from tests.numerics.zoo import SEQUENCE

COMPARE = "tests.numerics.equality:compare"
RANKS = "libs.runtime.tests.tensor.ranks"


def plan_for(model: nn.Module, name: str, degree: int = 2) -> TensorPlan:
    sample = BY_NAME[name].batch(2, seed=1)
    blocks = find_chain(model, lambda one: loss(one, sample)).blocks
    return choose_tensor_plan(model, blocks, loss, sample, degree, sequence=True)


# ---- what is divided


def test_blocks_that_hand_on_a_hidden_state_are_one_run() -> None:
    plan = plan_for(made("llama"), "llama")
    (run,) = plan.sequence
    assert run.blocks == plan.blocks
    assert run.door == Door(0, None)
    norms = {f"model.layers.{n}.{name}_layernorm.weight" for n in range(4) for name in ("input", "post_attention")}
    assert plan.summed == norms


def test_biases_behind_the_sum_are_partial_too() -> None:
    assert "blocks.0.out.bias" in plan_for(made("careless"), "careless").summed
    assert "transformer.h.3.mlp.c_proj.bias" in plan_for(made("gpt2"), "gpt2").summed


def test_an_encoder_and_its_decoder_are_two_runs() -> None:
    assert [(len(run.blocks), run.door) for run in plan_for(made("t5"), "t5").sequence] == [(2, Door(0, 0))] * 2


def test_tokens_routed_to_experts_are_gathered_with_their_choice() -> None:
    assert len(plan_for(made("mixtral"), "mixtral").sequence[0].blocks) == 4


class Skipping(Careless):
    """The third block's input is used behind the chain as well."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks.extend(type(self.blocks[0])(32, 4) for _ in range(3))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens)
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number == 1:
                kept = x
        return self.head(x + kept)


def test_what_others_use_as_well_is_gathered_before() -> None:
    torch.manual_seed(0)
    runs = plan_for(Skipping().double(), "careless").sequence
    assert [run.blocks for run in runs] == [("blocks.0", "blocks.1"), ("blocks.2", "blocks.3", "blocks.4")]


def test_a_loss_may_take_the_last_token_off() -> None:
    gpt = example()
    model = gpt.GPT(gpt.ModelConfig(layers=2, width=32, heads=4, context=32))
    batch = torch.randint(0, gpt.VOCABULARY, (4, 25))
    for degree in (2, 4):
        plan = choose_tensor_plan(model, ["blocks.0", "blocks.1"], gpt.loss, batch, degree, sequence=True)
        assert plan.sequence[0].length == 24


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("olmo2", r"model\.layers\.0 does not compute the same then: "),
        ("torch_encoder", r"encoder\.layers\.0 does not compute the same then: an output differs"),
        ("convnext", r"no block hands a hidden state of the shape \[batch, sequence, hidden\] to the next one"),
        ("vit", r"the sequence of 17 is not divisible by tp 2; sequences of 16 or 18 are"),
    ],
)
def test_refusals_say_why(name: str, message: str) -> None:
    with pytest.raises(NoSequencePlan, match=message):
        plan_for(made(name), name)


class Twofold(nn.Module):
    """A block that hands on the sum so far beside its own result."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor, rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.down(torch.relu(self.up(self.norm(x + rest)))), x + rest


class Summing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Twofold() for _ in range(2))
        self.first = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        rest = x * 2
        for block in self.blocks:
            x, rest = block(x, rest)
        return x + rest


def test_a_second_divided_value_is_refused() -> None:
    sample = torch.randn(2, 4, 8)
    with pytest.raises(NoSequencePlan, match=r"blocks\.0 does not compute the same then"):
        choose_tensor_plan(
            Summing(), ["blocks.0", "blocks.1"], lambda one, x: (one(x).sum(), 1), sample, 2, sequence=True
        )


def test_the_profile_says_whether_the_sequence_can_be_divided() -> None:
    found = profile(made("llama"), loss, BY_NAME["llama"].batch(2, seed=1))
    assert (found.no_sequence, found.sequence) == ("", SEQUENCE)
    assert found.divides_sequence(4)
    assert not found.divides_sequence(8)
    unable = profile(made("olmo2"), loss, BY_NAME["olmo2"].batch(2, seed=1))
    assert "model.layers.0 does not compute the same then" in unable.no_sequence
    assert not unable.divides_sequence(2)


# ---- what is carried out


@pytest.mark.parametrize(
    ("have", "want", "own"),
    [
        ((2, 3, 8), (2, 6, 4, 2), (2, 3, 4, 2)),
        ((2, 3, 8), (2, 6, -1, 2), (2, 3, -1, 2)),
        ((2, 3, 8), (12, 8), (6, 8)),
        ((2, 3, 8), (-1, 8), (-1, 8)),
        ((6, 8), (2, 6, 8), (2, 3, 8)),
        ((2, 3, 8), (2, 24), (2, 24)),
    ],
)
def test_shapes_for_the_whole_sequence_become_those_of_a_stretch(
    have: tuple[int, ...], want: tuple[int, ...], own: tuple[int, ...]
) -> None:
    assert own_sizes(have, want, 2) == own


def test_a_stretch_tells_the_whole_length_and_computes_its_own() -> None:
    own = torch.ones(2, 3, 8).as_subclass(stretch_type(2))
    assert (own.shape, own.size(1), own.size(dim=-1), own.size()) == ((2, 6, 8), 6, 8, (2, 6, 8))
    assert float((own + own).sum()) == 2 * 2 * 3 * 8
    assert own.mean(-1).shape == (2, 3)


class Noting:
    """Rank 0 without the others; remembers what it gathered as long as somebody else does."""

    rank, degree = 0, 2

    def __init__(self) -> None:
        self.gathered: list[weakref.ref[torch.UntypedStorage]] = []
        self.sum = LoneRank(2).sum
        self.scatter = LoneRank(2).scatter

    def gather(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        made = LoneRank(2).gather(tensor, dim)
        self.gathered.append(weakref.ref(made.untyped_storage()))
        return made

    def alive(self) -> int:
        return sum(storage() is not None for storage in self.gathered)


def alone(keeps_own: bool) -> tuple[nn.Module, Noting]:
    """Rank 0's part of the example."""
    model, ranks = made("example_gpt"), Noting()
    plan = plan_for(model, "example_gpt")
    for path, split in plan.modules.items():
        for name, layout in split.parameters.items():
            whole = model.get_submodule(path).get_parameter(name).detach()
            setattr(model.get_submodule(path), name, nn.Parameter(layout.take(whole, 0, 2).clone()))
    hook_modules(model, plan.modules, plan.blocks, ranks, random=False, sequence=plan.sequence, keeps_own=keeps_own)
    return model, ranks


def test_what_was_gathered_is_not_kept_but_gathered_again() -> None:
    batch = BY_NAME["example_gpt"].batch(2, seed=1)
    found: list[list[torch.Tensor]] = []
    for keeps_own, kept, gathered in ((True, 0, 5 + 5 + 4), (False, 4, 5 + 5)):
        model, ranks = alone(keeps_own)
        total, _ = loss(model, batch)
        # Two columns in each of two blocks, and the end of the run, which the norm behind it wants.
        assert (len(ranks.gathered), ranks.alive()) == (5, kept + 1)
        total.backward()
        assert len(ranks.gathered) == gathered
        found.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_an_odd_sequence_runs_undivided_but_does_not_train() -> None:
    model, ranks = alone(keeps_own=True)
    odd = {name: value[:, :5] for name, value in BY_NAME["example_gpt"].batch(2, seed=1).items()}
    with torch.no_grad():
        loss(model, odd)
    assert not ranks.gathered
    with pytest.raises(NotDivisible, match=r"a sequence of 5 is not divisible by tp 2: pad batches to a multiple of 2"):
        loss(model, odd)


def test_inner_hidden_states_are_not_taken_for_the_whole() -> None:
    model, _ = alone(keeps_own=True)
    seen: list[torch.Tensor] = []
    model.blocks[0].register_forward_hook(lambda module, args, result: seen.append(result))
    loss(model, BY_NAME["example_gpt"].batch(2, seed=1))
    with pytest.raises(OwnPartUsed, match=r"stretch of the sequence only: use sequence_parallel=no"):
        seen[0].sum()


# ---- on several ranks


EQUAL = [
    *(("llama", plan) for plan in ("tp=2", "tp=2,dp_shard=2", "tp=2,pp=2")),
    *(("gpt2", plan) for plan in ("tp=4", "tp=2,recompute=full", "tp=2,dp_shard=2,recompute=selective", "tp=2,pp=2")),
    *((name, "tp=2") for name in ("mixtral", "bert", "t5")),
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("name", "plan"), EQUAL)
def test_it_trains_as_one_process_does(pool: Pool, name: str, plan: str) -> None:
    world = 2 if plan in ("tp=2", "tp=2,recompute=full") else 4
    how = {"plan": f"{plan},sequence_parallel=yes", "optimizer": "adamw", "dtype": "float64", "grad_clip": 1.0}
    answer = pool.run(COMPARE, world, timeout_s=100, name=name, **how)[0]
    assert "refused" not in answer, answer
    assert answer["loss"] <= 1e-10, answer
    assert answer["norm"] <= 1e-9, answer
    assert answer["parameter"] <= 1e-9, answer
    assert not answer["missing"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("plan", ["tp=2", "tp=2,dp_shard=2", "tp=2,pp=2"])
def test_the_example_trains_as_one_process_does(pool: Pool, plan: str) -> None:
    plan = f"{plan},sequence_parallel=yes"
    answers = pool.run(f"{RANKS}:train_example", 2 if plan.startswith("tp=2,seq") else 4, timeout_s=100, plan=plan)
    assert max(answer["loss"] for answer in answers) <= 1e-10
    assert max(answer["parameter"] for answer in answers) <= 1e-9


def test_generated_text_is_the_same(pool: Pool) -> None:
    for name in ("llama", "gpt2"):
        for answer in pool.run(f"{RANKS}:evaluate", 2, name=name, sequence=True):
            assert answer["loss"] <= 1e-6
            assert answer["same"]


def test_what_cannot_be_divided_is_refused_on_all_ranks(pool: Pool) -> None:
    how = {"plan": "tp=2,sequence_parallel=yes", "optimizer": "adamw", "dtype": "float64"}
    told = {answer["refused"] for answer in pool.run(COMPARE, 2, name="vit", **how)}
    assert told == {
        "sequence_parallel=yes is not possible: the sequence of 17 is not divisible by tp 2; sequences of 16 or 18 "
        "are; leave it out: tp=2 works without it"
    }


def test_compiled_blocks_are_refused(pool: Pool) -> None:
    (told, other) = pool.run(f"{RANKS}:refusal", 2, plan="tp=2,sequence_parallel=yes", compiled=True)
    assert told == other
    assert told.endswith("is not possible with compiled blocks: leave it out, or do not compile (compiled=False)")


def test_it_needs_tensor_parallelism(pool: Pool) -> None:
    assert "it needs tp=N" in pool.run(f"{RANKS}:refusal", 2, plan="dp_shard=2,sequence_parallel=yes")[0]


def test_masks_are_each_ranks_own_wherever_stretches_are_dropped_from(pool: Pool) -> None:
    one, other = pool.run(f"{RANKS}:masks", 2, sequence=True)
    for block in ("blocks.0", "blocks.1"):
        for place in ("before", "inside", "after"):
            kept, others = one[f"{block}.{place}"], other[f"{block}.{place}"]
            assert not set(kept) & set(others), "each in its own way"
            assert kept[0] != kept[1], "another pass drops something else"
            if place != "after":  # where recomputation has all it wants and ends
                # Two passes forward; the backward pass recomputes the later one first.
                assert len(kept) == 4
                assert sorted(kept[2:]) == sorted(kept[:2]), "recomputation drops the same"
    assert one["drawn after"] == other["drawn after"], "the common stream goes on alike on all ranks"
