"""Cuts a chain into stages of equal time: the slowest stage is as fast as any cut makes it.

What comes before the chain lies on the first stage and what comes after it on the last, so those get fewer blocks
where that is heavy. Exact, by dynamic programming over the blocks' times.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from heapq import heapify, heapreplace
from itertools import accumulate


def balanced_stages(
    blocks_s: Sequence[float], stages: int, before_s: float = 0.0, after_s: float = 0.0
) -> tuple[int, ...]:
    """Blocks in each of `stages` stages, at least one each, such that the slowest stage is fastest.

    Among equal cuts, earlier stages get more blocks: they are what later stages wait for least at a step's end, and
    the last one often carries what `after_s` does not say.

    Raises:
        ValueError: there are fewer blocks than stages.
    """
    if stages < 1 or len(blocks_s) < stages:
        raise ValueError(f"{len(blocks_s)} blocks cannot make {stages} stages")
    return _cut(tuple(blocks_s), stages, before_s, after_s)


@lru_cache(maxsize=4096)
def _cut(blocks_s: tuple[float, ...], stages: int, before_s: float, after_s: float) -> tuple[int, ...]:
    if len(set(blocks_s)) == 1:
        return _equal_blocks(len(blocks_s), blocks_s[0], stages, before_s, after_s)
    n = len(blocks_s)
    upto = list(accumulate(blocks_s, initial=0.0))
    # best[j]: the slowest stage of the best cut of the first j blocks into as many stages as were done so far.
    best = [before_s + upto[j] for j in range(n + 1)]
    came: list[list[int]] = []
    for stage in range(1, stages):
        extra = after_s if stage == stages - 1 else 0.0
        following = [float("inf")] * (n + 1)
        source = [0] * (n + 1)
        for j in range(stage + 1, n + 1):
            # From the latest cut on, so that ties give earlier stages more.
            for i in range(j - 1, stage - 1, -1):
                last = upto[j] - upto[i] + extra
                if last >= following[j]:
                    break
                if (slowest := max(best[i], last)) < following[j]:
                    following[j], source[j] = slowest, i
        best = following
        came.append(source)
    sizes: list[int] = []
    end = n
    for source in reversed(came):
        sizes.append(end - source[end])
        end = source[end]
    return (*reversed([*sizes, end]),)


def _equal_blocks(blocks: int, block_s: float, stages: int, before_s: float, after_s: float) -> tuple[int, ...]:
    """The same for blocks of equal time: give each next block to the stage that is then least slow."""
    sizes = [1] * stages
    load = [block_s] * stages
    load[0] += before_s
    load[-1] += after_s
    fastest = [(seconds, stage) for stage, seconds in enumerate(load)]
    heapify(fastest)
    for _ in range(blocks - stages):
        seconds, least = fastest[0]
        sizes[least] += 1
        heapreplace(fastest, (seconds + block_s, least))
    return tuple(sizes)
