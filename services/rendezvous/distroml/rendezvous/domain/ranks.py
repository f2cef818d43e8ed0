"""Who gets which rank: pure and deterministic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distroml.rendezvous.domain.model import ExpectedMember, Generation, JoinedNode, Member


def assign(
    nodes: Mapping[str, JoinedNode], order: Sequence[ExpectedMember], previous: Generation | None
) -> tuple[Member, ...]:
    """Members for every worker of `nodes`, ranks 0..n-1 in blocks by node.

    A node that took part in `previous` keeps its place among the nodes, a new one takes the place of a lost one
    (of the same size where there is one), further ones follow in the order of the gang; inside a node a worker
    keeps its place too. So a survivor keeps its rank wherever the blocks before it keep their sizes.
    """
    named = [e.node for e in order if e.node in nodes]
    places = _node_places(nodes, named, previous)
    members: list[Member] = []
    for node_rank, name in enumerate(places):
        workers = _worker_places(nodes[name].workers, _previous_workers(previous, name))
        for local_rank, worker in enumerate(workers):
            member = Member(
                worker=worker,
                node=name,
                rank=len(members),
                local_rank=local_rank,
                node_rank=node_rank,
                local_world_size=len(workers),
                address=nodes[name].address,
            )
            members.append(member)
    return tuple(members)


def _node_places(nodes: Mapping[str, JoinedNode], named: Sequence[str], previous: Generation | None) -> Sequence[str]:
    before = previous.nodes if previous else ()
    newcomers = [name for name in named if name not in before]
    places: list[str | None] = []
    for old in before:
        if old in named:
            places.append(old)
            continue
        size = len(_previous_workers(previous, old))
        same_size = (name for name in newcomers if len(nodes[name].workers) == size)
        heir = next(same_size, None)
        if heir is not None:
            newcomers.remove(heir)
        places.append(heir)
    filled = [name if name is not None else (newcomers.pop(0) if newcomers else None) for name in places]
    return [name for name in [*filled, *newcomers] if name is not None]


def _worker_places(workers: Sequence[str], before: Sequence[str]) -> Sequence[str]:
    kept = set(workers) & set(before)
    fresh = iter([worker for worker in workers if worker not in kept])
    places = [worker if worker in kept else next(fresh, None) for worker in before]
    return [worker for worker in [*places, *fresh] if worker is not None]


def _previous_workers(previous: Generation | None, node: str) -> Sequence[str]:
    return [m.worker for m in previous.members if m.node == node] if previous else []
