"""Whether a model can be spread by a plan at all, memory apart; each "no" names the nearest that works."""

from __future__ import annotations

from distroml.planner.cost.pipeline import fits_schedule
from distroml.planner.plan import Plan
from distroml.planner.prediction import Refused
from distroml.planner.profile import ModelProfile
from distroml.planner.topology import Topology


def impossible(plan: Plan, profile: ModelProfile, topology: Topology, global_batch: int | None) -> Refused | None:
    """Why `plan` cannot be, or None."""
    return (
        _world(plan, topology)
        or tp_refused(plan.tp, profile)
        or pp_refused(plan.pp, profile)
        or _stages(plan, profile)
        or _sequence(plan, profile)
        or _batch(plan, global_batch)
    )


def _world(plan: Plan, topology: Topology) -> Refused | None:
    if plan.world_size == topology.world_size:
        return None
    axes = " x ".join(f"{axis}={size}" for axis, size in plan.mesh.items() if size > 1) or "1"
    rest, odd = divmod(topology.world_size, plan.tp * plan.pp)
    nearest = (
        f"with tp={plan.tp} and pp={plan.pp} it takes dp_replicate x dp_shard = {rest}"
        if not odd
        else f"tp x pp must divide {topology.world_size}"
    )
    return Refused(
        reason=f"{axes} makes {plan.world_size} ranks, the cluster has {topology.world_size}", nearest=nearest
    )


def tp_refused(tp: int, profile: ModelProfile) -> Refused | None:
    """Why the model cannot be split by `tp`, or None."""
    if tp == 1:
        return None
    if profile.no_tp:
        return Refused(reason=f"tp={tp} is not possible: {profile.no_tp}", nearest="tp=1 is")
    for what, count in profile.tp_limits.items():
        if count % tp:
            works = [degree for degree in range(1, count + 1) if fits_tp(degree, profile)]
            nearest = min(works, key=lambda degree: (abs(degree - tp), degree))
            return Refused(
                reason=f"tp={tp} does not divide the model's {count} {what}", nearest=f"nearest that does: tp={nearest}"
            )
    return None


def fits_tp(tp: int, profile: ModelProfile) -> bool:
    """Whether `tp` divides everything that it has to."""
    return tp == 1 or (not profile.no_tp and all(count % tp == 0 for count in profile.tp_limits.values()))


def pp_refused(pp: int, profile: ModelProfile) -> Refused | None:
    """Why the model cannot be cut into `pp` stages, or None."""
    if pp == 1:
        return None
    if profile.no_pp:
        return Refused(reason=f"pp={pp} is not possible: {profile.no_pp}", nearest="pp=1 is")
    if pp > profile.block_count:
        return Refused(
            reason=f"pp={pp} needs as many blocks, the model has {profile.block_count}",
            nearest=f"pp={profile.block_count} is the most",
        )
    return None


def _stages(plan: Plan, profile: ModelProfile) -> Refused | None:
    if plan.pp == 1:
        return None
    blocks = profile.block_count
    if sum(plan.stages) != blocks:
        given = "/".join(map(str, plan.stages)) or "nothing"
        return Refused(
            reason=f"stages={given} hold {sum(plan.stages)} blocks, the model has {blocks}",
            nearest="leave stages out to have them balanced",
        )
    return None


def _sequence(plan: Plan, profile: ModelProfile) -> Refused | None:
    if not plan.sequence_parallel or plan.tp == 1 or profile.divides_sequence(plan.tp):
        return None
    length = profile.sequence or profile.tokens
    why = profile.no_sequence or f"it splits {length} tokens by tp={plan.tp}, which does not divide them"
    return Refused(reason=f"sequence_parallel is not possible: {why}", nearest="sequence_parallel=no works")


def _batch(plan: Plan, global_batch: int | None) -> Refused | None:
    if global_batch is None:
        return None
    if global_batch < plan.dp:
        return Refused(
            reason=f"a global batch of {global_batch} has no sample for each of {plan.dp} data-parallel ranks",
            nearest=f"dp_replicate x dp_shard = {global_batch} is the most",
        )
    # Whole copies may take unequal parts; ranks that work together must make the same passes.
    if plan.dp_shard == plan.tp == plan.pp == 1:
        return None
    if global_batch % plan.dp:
        lower = global_batch // plan.dp * plan.dp
        return Refused(
            reason=f"a global batch of {global_batch} cannot be dealt out equally to {plan.dp} data-parallel ranks",
            nearest=f"nearest that can: {lower} or {lower + plan.dp}",
        )
    share = global_batch // plan.dp
    microbatch = min(plan.microbatch or share, share)
    if share % microbatch:
        works = [size for size in range(1, share + 1) if share % size == 0]
        nearest = min(works, key=lambda size: (abs(size - microbatch), size))
        return Refused(
            reason=f"{share} samples of each rank are not divisible into microbatches of {microbatch}",
            nearest=f"nearest that works: microbatch={nearest}",
        )
    if why := fits_schedule(plan.schedule, plan.pp, plan.chunks, share // microbatch):
        return Refused(reason=why, nearest="schedule=1f1b takes any number")
    return None
