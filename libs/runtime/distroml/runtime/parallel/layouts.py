"""Which gradients share a bucket where parameters lie divided over dp_shard, tp or pp."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn
from torch.distributed.tensor import DTensor

from distroml.runtime.parallel.buckets import BucketSpec, lay_out


def lay_out_apart(
    held: Sequence[tuple[str, nn.Parameter]],
    parts: Sequence[tuple[str, nn.Parameter]],
    tied: Sequence[str],
    bucket_mb: float,
    *,
    partial: Collection[str] = (),
    closing: Collection[str] = (),
) -> dict[int, BucketSpec]:
    """Buckets by number, such that what several ranks hold alike comes out alike, and what is whole late holds up none.

    A code of one gradient depends on its neighbours in the bucket, on its place and on the bucket's number, and the
    order in which a sum of three ranks or more is formed on the place and the bucket's size. So a
    parameter that several stages hold has a bucket of its own, with one number on all of them, and those that are
    whole on every tp rank come before the divided ones, of which these ranks may hold different numbers.

    Args:
        held: this rank's parameters.
        parts: the local parts of the same.
        tied: names of parameters that several stages hold.
        bucket_mb: size of a bucket.
        partial: names of parameters whose gradients are summed along tp after the passes.
        closing: names of parameters whose gradients are whole at the passes' very end.
    """
    layout: dict[int, BucketSpec] = {}
    kinds: dict[tuple[bool, bool, bool], list[int]] = {}
    for place, (name, parameter) in enumerate(held):
        if name in tied:
            (layout[tied.index(name)],) = lay_out(parts, bucket_mb, [place])
        else:
            kind = ("tp" in divided_axes(parameter), name in partial, name in closing)
            kinds.setdefault(kind, []).append(place)
    for _, places in sorted(kinds.items()):
        first = max(len(tied), *(number + 1 for number in layout), 0)
        layout |= dict(enumerate(lay_out(parts, bucket_mb, places), first))
    return dict(sorted(layout.items()))


def divided_axes(parameter: nn.Parameter) -> set[str]:
    """The axes along which ranks hold different elements of a parameter."""
    if not isinstance(parameter, DTensor):
        return set()
    names = parameter.device_mesh.mesh_dim_names or ()
    # FSDP's placement of a parameter that tp divides, too, says of itself that it is no shard.
    return {name for name, placement in zip(names, parameter.placements, strict=True) if not placement.is_replicate()}
