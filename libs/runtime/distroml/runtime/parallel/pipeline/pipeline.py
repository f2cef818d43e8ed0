"""A model cut into stages, this rank's share of them, and the steps they make together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from distroml.planner import Plan
from distroml.runtime.elastic import hearing
from distroml.runtime.parallel.pipeline import trees
from distroml.runtime.parallel.pipeline.errors import NoCut
from distroml.runtime.parallel.pipeline.fakes import hollow_copy
from distroml.runtime.parallel.pipeline.flow import Flow, Run, follow
from distroml.runtime.parallel.pipeline.proof import prove
from distroml.runtime.parallel.pipeline.schedule import BeforeForward, Runner, check_schedule
from distroml.runtime.parallel.pipeline.stage import StageModule, original_name
from distroml.runtime.parallel.pipeline.tied import Held, follow_first, sum_tied

Loss = Callable[[nn.Module, Any], tuple[torch.Tensor, Any]]
_CPU = torch.device("cpu")
_UNBOUND = "the pipeline has no group yet: call bind() first"
_KEPT = 32  # flows, one for each signature


class Pipeline:
    """A model cut by a plan. In order: construct; parallelise and materialise `modules`; `bind`; then steps.

    Construction follows one run of the loss on fake tensors, cuts, proves the cut in this process, and takes all
    parameters out of the model that this rank does not hold. It needs no process group and allocates no weights.

    All ranks of a pipeline (the `pp` group) must make the same calls in the same order, with the same batches.

    Attributes:
        modules: this rank's stages, in order. Parameters in them may be on `meta`, may become DTensors, and their
            blocks may be wrapped (recomputation, compilation, `fully_shard`) until `bind`.
        names: names in the user's model of the parameters held here. Where two modules here have one of the same name,
            the first one's counts; the other follows it.
        tied: names of the parameters that several stages use, with those stages; equal on all ranks.
        owner: for each parameter and buffer of the model, the one stage whose copy counts (norms, checkpoints).
        proved: whether the cut was proved by values; large models are only followed.
        on_passed: called with a stage's index when all of its backward passes of a step are done.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        sample: Any,
        *,
        blocks: Sequence[str],
        plan: Plan,
        coordinate: int,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Cut `model`, which becomes this rank's first stage.

        Args:
            model: undivided; on any device, best on `meta`.
            loss: called with a module and a batch; returns the sum of losses and their number.
            sample: one microbatch as the loader gives it.
            blocks: module paths of the chain in the order of execution.
            plan: `pp`, `stages` and `schedule` count here.
            coordinate: this rank's place on the `pp` axis.
            dtype: in which floating parameters compute, where that is not their own (mixed precision).

        Raises:
            NoCut: the model cannot be cut so; the message names module and cause.
        """
        if sum(plan.stages) != len(blocks) or not plan.stages:
            raise NoCut(
                f"the plan's stages {plan.stages} hold {sum(plan.stages)} blocks, the model's chain has {len(blocks)}"
            )
        self._blocks = tuple(blocks)
        self._bounds = [sum(plan.stages[:stage]) for stage in range(len(plan.stages) + 1)]
        self._plan = plan
        self._loss = loss
        self._dtype, self._device = dtype, _CPU
        self._flows: dict[Hashable, Flow] = {}
        self._runner: Runner | None = None
        self._group: dist.ProcessGroup | None = None
        self.on_passed: Callable[[int], None] | None = None
        try:
            self._hollow = hollow_copy(model)
        except Exception as error:
            raise NoCut(f"the model cannot be copied: {type(error).__name__}: {error}") from error
        flow = self._follow(self._loss_run(_on(_CPU, sample)))
        self._held = self._holdings(flow)
        self.proved = prove(self._hollow, self._loss_run, _on(_CPU, sample), self._blocks, self._bounds, self._held)
        self._flows[self._key("loss", sample)] = flow
        self.tied = {
            name: stages
            for name, parameter in self._hollow.named_parameters()
            if parameter.requires_grad
            and len(stages := tuple(s for s, names in enumerate(self._held) if name in names)) > 1
        }
        self.owner = self._owners()
        mine = range(coordinate, len(plan.stages), plan.pp)
        self.modules = self._stage_modules(model, mine)
        self.names = list(dict.fromkeys(name for module in self.modules for name in module.names.values()))

    def bind(self, group: dist.ProcessGroup, device: torch.device) -> None:
        """Make the modules ready for steps along `group`, after they are parallelised and materialised.

        Raises:
            ValueError: the schedule cannot run compiled modules.
        """
        check_schedule(self._plan.schedule, self.modules)
        if device != self._device:
            # What was followed believed to be elsewhere, where autocast may choose other types.
            self._flows.clear()
        self._group, self._device = group, device
        for module in self.modules:
            module.place(device)
            module.install()
        self._runner = Runner(self.modules, self._plan.schedule, len(self._plan.stages), group, device, self._passed)

    def _passed(self, stage: int) -> None:
        if self.on_passed is not None:
            self.on_passed(stage)

    @property
    def group(self) -> dist.ProcessGroup:
        """The ranks of the pipeline; raises `RuntimeError` before `bind`."""
        if self._group is None:
            raise RuntimeError(_UNBOUND)
        return self._group

    @property
    def device(self) -> torch.device:
        """Where its stages are."""
        return self._device

    def forward_backward(
        self, batches: Sequence[Any], before_forward: BeforeForward | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Accumulate the gradients of the summed loss of `batches`, one microbatch each; `sum_tied` comes after.

        Args:
            batches: on the device, of one signature.
            before_forward: called with microbatch and stage before each forward pass on this rank.

        Returns:
            Sum of losses and their number, float64, where the last stage is; zeros on other ranks.

        Raises:
            ValueError: there are no batches, they differ in shape, or the schedule cannot order so many.
            PeerLost: another rank of the pipeline is gone.
        """
        if not batches:
            raise ValueError("a pipeline's step needs at least one microbatch on every rank, and was given none")
        keys = [self._key("loss", batch) for batch in batches]
        for position, key in enumerate(keys):
            if key != keys[0]:
                raise ValueError(
                    f"microbatch {position} of this step has another shape than microbatch 0: a pipeline needs equal "
                    f"shapes within a step; pad them in `collate` (got {key[1]} and {keys[0][1]})"
                )
        return self._steps(keys[0], batches, backward=True, before=before_forward)

    def evaluate(
        self, batches: Sequence[Any], loss: Loss | None = None, name: str = "loss"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `forward_backward`, without gradients; here batches may differ in shape.

        Args:
            batches: on the device.
            loss: another sum and count than the loss, from the same model.
            name: of it, one for each.
        """
        total = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        start = 0
        keys = [self._key(name, batch) for batch in batches]
        while start < len(batches):
            stop = start
            while stop < len(batches) and keys[stop] == keys[start]:
                stop += 1
            part = self._steps(keys[start], batches[start:stop], backward=False, before=None, loss=loss)
            total = part[0] + total[0].to(part[0].device), part[1] + total[1].to(part[1].device)
            start = stop
        return total

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own output, on every rank of the pipeline, without gradients.

        What in it is neither tensor nor plain value (a cache of keys and values) is None.
        """
        given = (args, kwargs)
        key = self._key("call", given)
        results: list[Any] = []

        def run(model: nn.Module) -> torch.Tensor:
            results.append(model(*args, **kwargs))
            return torch.zeros(1)

        flow = self._flow(key, lambda: _call_run(_on(self._device, given)))
        self._running().run(key, flow, [run], backward=False)
        return self._shared(results[0] if results else None)

    def sum_tied(self) -> None:
        """Give every holder of a tied parameter the sum of the gradients; once, after a step's backward passes."""
        if self.tied:
            sum_tied(self.tied, self._mine(), self.group)

    def _mine(self) -> Held:
        return {module.index: dict(_by_original_name(module)) for module in self.modules}

    def _running(self) -> Runner:
        if self._runner is None:
            raise RuntimeError(_UNBOUND)
        if self.tied and len(self.modules) > 1:
            follow_first(self.tied, self._mine())
        return self._runner

    def _steps(
        self,
        key: tuple[Any, ...],
        batches: Sequence[Any],
        *,
        backward: bool,
        before: BeforeForward | None,
        loss: Loss | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loss = loss or self._loss
        totals: list[torch.Tensor] = []
        counts: list[Any] = []

        def run_of(batch: Any) -> Run:
            def run(model: nn.Module) -> torch.Tensor:
                total, count = loss(model, batch)
                totals.append(total.detach().double())
                counts.append(count)
                return total.reshape(1).clone()

            return run

        first = _on(self._device, batches[0])
        flow = self._flow(key, lambda: lambda model: loss(model, first)[0])
        self._running().run(key, flow, [run_of(batch) for batch in batches], backward=backward, before=before)
        zero = torch.zeros((), dtype=torch.float64)
        if not totals:
            return zero, zero.clone()
        count = sum((torch.as_tensor(c, dtype=torch.float64, device=totals[0].device) for c in counts), zero)
        return torch.stack(totals).sum(), count

    def _follow(self, run: Run) -> Flow:
        return follow(self._hollow, run, self._blocks, self._bounds, self._dtype, self._device)

    def _flow(self, key: tuple[Any, ...], run: Callable[[], Run]) -> Flow:
        flow = self._flows.pop(key, None)
        if flow is None:
            self._hollow.train(self.modules[0].training)
            flow = self._follow(run())
            for stage, held in zip(flow.stages, self._held, strict=True):
                if missing := sorted(stage.parameters - held):
                    raise NoCut(
                        f"this call needs {missing[0]} between blocks {stage.first} and {stage.stop}, which the loss "
                        "does not, so that the stage does not hold it"
                    )
            while len(self._flows) >= _KEPT:
                self._flows.pop(next(iter(self._flows)))
        self._flows[key] = flow
        return flow

    def _key(self, kind: str, batch: Any) -> tuple[Any, ...]:
        leaves, _ = trees.flatten(batch)
        told = tuple(
            f"{trees.words(path)}: {tuple(leaf.shape)} {leaf.dtype}"
            if isinstance(leaf, torch.Tensor)
            else f"{trees.words(path)}: {leaf!r}"
            for path, leaf in leaves.items()
        )
        training = self.modules[0].training if hasattr(self, "modules") else self._hollow.training
        return kind, told, training

    def _loss_run(self, batch: Any) -> Run:
        return lambda model: self._loss(model, batch)[0]

    def _holdings(self, flow: Flow) -> list[frozenset[str]]:
        held = [set(stage.parameters) for stage in flow.stages]
        used = frozenset[str]().union(*held)
        for name, _ in self._hollow.named_parameters():
            if name not in used:
                held[self._place_of(name) or 0].add(name)
        return [frozenset(names) for names in held]

    def _place_of(self, name: str) -> int | None:
        for number, path in enumerate(self._blocks):
            if name.startswith(f"{path}."):
                return next(stage for stage, stop in enumerate(self._bounds[1:]) if number < stop)
        return None

    def _owners(self) -> dict[str, int]:
        owner = {
            name: next(stage for stage, names in enumerate(self._held) if name in names)
            for name, _ in self._hollow.named_parameters()
        }
        for name, _ in self._hollow.named_buffers():
            place = self._place_of(name)
            if place is None:
                # With its module's own parameters: there it is computed with what is real.
                module = name.rpartition(".")[0]
                beside = (stage for other, stage in owner.items() if other.rpartition(".")[0] == module)
                place = next(beside, 0)
            owner[name] = place
        return owner

    def _stage_modules(self, model: nn.Module, mine: range) -> list[StageModule]:
        shared: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
        models = [model, *(copy.deepcopy(model, dict(shared)) for _ in mine[1:])]
        return [
            StageModule(part, self._blocks, stage, self._bounds, self._held[stage], self._dtype)
            for part, stage in zip(models, mine, strict=True)
        ]

    def _shared(self, result: Any) -> Any:
        group = self.group
        source = dist.get_global_rank(group, (len(self._plan.stages) - 1) % group.size())
        described: list[Any] = [trees.map_leaves(_described, result)]
        with hearing():
            dist.broadcast_object_list(described, source, group)
        tensors = [leaf for leaf in trees.leaves_of(result) if isinstance(leaf, torch.Tensor)]
        received: list[torch.Tensor] = []
        for position, leaf in enumerate(leaf for leaf in trees.leaves_of(described[0]) if isinstance(leaf, _Described)):
            tensor = tensors[position].contiguous() if tensors else leaf.empty(self._device)
            dist.broadcast(tensor, source, group)
            received.append(tensor)
        rest = iter(received)
        return trees.map_leaves(lambda leaf: next(rest) if isinstance(leaf, _Described) else leaf, described[0])


class _Described:
    """A tensor on its way: shape and type, without its elements."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.shape = tuple(tensor.shape)
        self.dtype = tensor.dtype

    def empty(self, device: torch.device) -> torch.Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device=device)


def _described(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return _Described(leaf)
    return leaf if isinstance(leaf, int | float | str | None) else None


def _on(device: torch.device, tree: Any) -> Any:
    return trees.map_leaves(lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf, tree)


def _call_run(given: tuple[tuple[Any, ...], dict[str, Any]]) -> Run:
    return lambda model: model(*given[0], **given[1])


def _by_original_name(module: StageModule) -> list[tuple[str, nn.Parameter]]:
    return [(original_name(name), parameter) for name, parameter in module.named_parameters()]
