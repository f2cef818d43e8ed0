"""A model divided by a plan: cut into stages, split along tp, recomputed, sharded; this rank's part of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from distroml.planner import Plan, PlanRefused
from distroml.runtime.checkpoint import Whole
from distroml.runtime.checkpoint.whole import NOTHING_ELSE, clean
from distroml.runtime.parallel.held import HeldModel
from distroml.runtime.parallel.mesh import Mesh
from distroml.runtime.parallel.pipeline import NoCut, Pipeline
from distroml.runtime.parallel.pipeline.stage import original_name
from distroml.runtime.parallel.pipelined import PipelinedModel
from distroml.runtime.parallel.recompute import recompute
from distroml.runtime.parallel.sharding import Reached, shard
from distroml.runtime.parallel.tensor import (
    NoSequencePlan,
    NoTensorPlan,
    TensorPlan,
    apply_tensor_plan,
    choose_tensor_plan,
)
from distroml.runtime.parallel.weights import WeightSource, materialise
from distroml.runtime.profile import Chain, NoChain, find_chain
from distroml.runtime.typed import compile_in_place

Loss = Callable[[nn.Module, Any], tuple[Any, Any]]


@dataclass(frozen=True, slots=True)
class Part:
    """What of a model lies on this rank.

    Attributes:
        module: what the user's code calls; runs the whole model on any plan.
        roots: modules that hold this rank's parameters and buffers.
        held: those parameters by their names in the whole model, each once.
        counted: by name, whether this rank's stage is the one whose copy counts (norms, checkpoints).
        pipeline: the stages' steps, where there are stages.
        split: what tp divides.
        reached: what the backward passes of a step reach.
        whole: the undivided model's names, and the order of rows of what tp divides.
    """

    module: nn.Module
    roots: list[nn.Module]
    held: list[tuple[str, nn.Parameter]]
    counted: dict[str, bool] = field(default_factory=dict[str, bool])
    pipeline: Pipeline | None = None
    split: TensorPlan | None = None
    reached: Reached = field(default_factory=Reached)
    whole: Whole = NOTHING_ELSE

    @property
    def state(self) -> nn.Module:
        """What a checkpoint sees of this part."""
        return HeldModel(self.pipeline) if self.pipeline is not None else self.module


def chain_of(model: nn.Module, loss: Loss | None, sample: Any) -> Chain:
    """The model's chain of blocks.

    Raises:
        NoChain: there is none, or nothing to find it with.
    """
    if loss is None or sample is None:
        raise NoChain("the blocks are found by running the loss on a sample: pass loss= and sample= to parallelize")
    return find_chain(model, lambda one: loss(one, sample))


def chain_for(what: str, model: nn.Module, loss: Loss | None, sample: Any) -> Chain:
    """The model's chain of blocks, which `what` needs.

    Raises:
        PlanRefused: there is none; says why.
    """
    try:
        return chain_of(model, loss, sample)
    except NoChain as error:
        raise PlanRefused(
            f"{what} needs a chain of blocks, but {error}; plans of dp_replicate and dp_shard alone, without "
            "recomputation or compiled blocks, need none"
        ) from None


def divide(
    model: nn.Module,
    plan: Plan,
    mesh: Mesh,
    loss: Loss | None,
    sample: Any,
    *,
    compiled: bool,
    source: WeightSource | None = None,
) -> Part:
    """Make `model`, equal on all ranks, this rank's part. In place: it is not to be used any more by itself.

    With a `source` the model may be on `meta`: memory is given to this rank's part only, and filled from there.

    Raises:
        PlanRefused: the model cannot be divided so; names the cause. Nothing is changed where it is raised before
            the first block is.
    """
    if plan.pp > 1 or plan.tp > 1 or plan.recompute != "none" or compiled:
        chain = chain_for(f"the plan {plan}", model, loss, sample)
    else:
        try:
            chain = chain_of(model, loss, sample)
        except NoChain:
            chain = Chain(())
    split = None
    if plan.sequence_parallel and compiled:
        # What a stretch tells of its shape is not what torch.compile finds.
        raise PlanRefused(
            "sequence_parallel=yes is not possible with compiled blocks: leave it out, or do not compile "
            "(compiled=False)"
        )
    if plan.tp > 1:
        try:
            split = choose_tensor_plan(model, chain.blocks, loss, sample, plan.tp, sequence=plan.sequence_parallel)
        except NoSequencePlan as error:
            raise PlanRefused(
                f"sequence_parallel=yes is not possible: {error}; leave it out: tp={plan.tp} works without it"
            ) from None
        except NoTensorPlan as error:
            raise PlanRefused(f"tp={plan.tp} is not possible: {error}") from None
    pipeline = None
    names = [name for name, _ in model.named_parameters()]
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    rows = split.rows if split is not None else {}
    whole = Whole.of(model, rows)
    if plan.pp > 1:
        assert loss is not None
        try:
            pipeline = Pipeline(model, loss, sample, blocks=chain.blocks, plan=plan, coordinate=mesh.place["pp"])
        except NoCut as error:
            raise PlanRefused(f"pp={plan.pp} is not possible: {error}") from None
        _check_trained(pipeline, trained, plan)
    stages: list[nn.Module] = list(pipeline.modules) if pipeline is not None else [model]
    parts = [_owned(stage, chain.blocks) for stage in stages]
    if split is not None:
        for stage in stages:
            apply_tensor_plan(_inner(stage), split, mesh.devices("tp"), keeps_own=plan.recompute == "none")
    for blocks in parts:
        recompute(blocks, plan.recompute)
        for block in blocks if compiled else ():
            compile_in_place(block)
    reached = Reached()
    if plan.dp_shard > 1:
        for stage, blocks in zip(stages, parts, strict=True):
            shard(stage, blocks, mesh, reached)
    if source is not None:
        for stage in stages:
            strip = original_name if pipeline is not None else clean
            materialise(stage, source, name_of=strip, rows=rows, device=mesh.world.device)
    if pipeline is not None:
        group = mesh.group("pp")
        assert group is not None
        pipeline.bind(group, mesh.world.device)
    held = _held(stages, pipeline)
    if pipeline is None:
        return Part(model, stages, held, dict.fromkeys(names, True), None, split, reached, whole)
    mine = {stage.index for stage in pipeline.modules}
    counted = {name: pipeline.owner[name] in mine for name in names}
    return Part(PipelinedModel(pipeline), stages, held, counted, pipeline, split, reached, whole)


def _check_trained(pipeline: Pipeline, trained: Sequence[str], plan: Plan) -> None:
    """Refuse stages that leave a rank nothing to train: it would have no optimizer, while the others wait for it."""
    holding = {pipeline.owner[name] for name in trained}
    holding.update(stage for name in trained for stage in pipeline.tied.get(name, ()))
    for coordinate in range(plan.pp):
        stages = range(coordinate, len(plan.stages), plan.pp)
        if holding.isdisjoint(stages):
            told = "/".join(map(str, plan.stages))
            raise PlanRefused(
                f"pp={plan.pp} is not possible with stages={told}: all parameters of stage "
                f"{' and '.join(map(str, stages))} are frozen; let each rank hold a block that is trained, by other "
                "stages=N/N/… or a smaller pp"
            )


def _inner(stage: nn.Module) -> nn.Module:
    """The user's model in a stage."""
    inner = getattr(stage, "model", None)
    return inner if isinstance(inner, nn.Module) and hasattr(stage, "index") else stage


def _owned(stage: nn.Module, blocks: Sequence[str]) -> list[nn.Module]:
    """The blocks whose parameters lie in this stage."""
    model = _inner(stage)
    found = [model.get_submodule(path) for path in blocks]
    return [block for block in found if next(block.parameters(), None) is not None]


def _held(stages: Sequence[nn.Module], pipeline: Pipeline | None) -> list[tuple[str, nn.Parameter]]:
    if pipeline is None:
        return list(stages[0].named_parameters())
    held: dict[str, nn.Parameter] = {}
    for stage in pipeline.modules:
        own = dict(stage.named_parameters())
        for name, original in stage.names.items():
            held.setdefault(original, own[name])
    return list(held.items())
