"""What the runtime needs of a process group, as functions of its ranks; each raises where the group does otherwise.

Most hold for any number of ranks; the others say how many they need. A machine with few GPUs tries what it can.
"""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from libs.runtime.tests.comm.casebook import FLOATS, INTEGERS, SIZES, Case, Casebook, of, same, total
from libs.runtime.tests.comm.exchange_cases import EXCHANGES
from libs.runtime.tests.comm.round_cases import ROUNDS

COLLECTIVES = Casebook()
case, of_at_least = COLLECTIVES.case, COLLECTIVES.of_at_least


def cases_of(ranks: int) -> dict[str, Case]:
    """Those that a group of so many ranks can be held to, what needs most of a back end last."""
    return COLLECTIVES.cases_of(ranks) | ROUNDS.cases_of(ranks) | EXCHANGES.cases_of(ranks)


@case
def all_reduce_sums_every_dtype_and_size(device: torch.device) -> None:
    for dtype in (*FLOATS, *INTEGERS):
        for size in SIZES:
            tensor = of(dist.get_rank(), size, dtype, device)
            dist.all_reduce(tensor)
            same(tensor, total(size, dtype, device=device))


@case
def all_reduce_knows_the_other_operations(device: torch.device) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64):
        values = torch.stack([of(r, dtype=dtype) for r in range(ranks)])
        for op, wanted in (
            (dist.ReduceOp.MIN, values.amin(0)),
            (dist.ReduceOp.MAX, values.amax(0)),
            (dist.ReduceOp.PRODUCT, values.double().prod(0).to(dtype)),
        ):
            tensor = of(rank, dtype=dtype, device=device)
            dist.all_reduce(tensor, op=op)
            same(tensor, wanted.to(device))


@case
def averages_are_sums_over_the_number_of_ranks(device: torch.device) -> None:
    rank, ranks, average = dist.get_rank(), dist.get_world_size(), dist.ReduceOp.AVG
    for dtype in (torch.float32, torch.float64):
        tensor = of(rank, dtype=dtype, device=device)
        dist.all_reduce(tensor, op=average)
        same(tensor, total(dtype=dtype, device=device) / ranks)
        tensor = of(rank, dtype=dtype, device=device)
        dist.reduce(tensor, 0, op=average)
        if rank == 0:
            same(tensor, total(dtype=dtype, device=device) / ranks)
        own = torch.empty(3, dtype=dtype, device=device)
        dist.reduce_scatter_tensor(own, of(rank, 3 * ranks, dtype, device), op=average)
        same(own, total(3 * ranks, dtype, device=device).chunk(ranks)[rank] / ranks)


@case
def all_reduce_of_strided_and_scalar_tensors(device: torch.device) -> None:
    rank = dist.get_rank()
    base = torch.zeros(6, 4, device=device)
    view = base.t()[1:3]
    view.copy_(of(rank, 12).view(2, 6))
    dense = view.contiguous()
    dist.all_reduce(dense)
    same(dense, total(12, device=device).view(2, 6))
    scalar = torch.tensor(float(rank), device=device)
    dist.all_reduce(scalar)
    same(scalar, torch.tensor(float(sum(range(dist.get_world_size()))), device=device))


@case
def all_reduce_is_the_same_to_the_bit_on_all_ranks(device: torch.device) -> None:
    ranks = dist.get_world_size()
    for dtype in FLOATS:
        torch.manual_seed(dist.get_rank())
        tensor = torch.randn(4099, dtype=torch.float64).to(dtype).to(device)
        dist.all_reduce(tensor)
        everyones = [torch.empty_like(tensor) for _ in range(ranks)]
        dist.all_gather(everyones, tensor)
        for other in everyones:
            same(other, tensor)


@case
def reduce_leaves_the_sum_at_the_root(device: torch.device) -> None:
    rank, root = dist.get_rank(), 2 % dist.get_world_size()
    tensor = of(rank, device=device)
    dist.reduce(tensor, root)
    if rank == root:
        same(tensor, total(device=device))


@case
def broadcast_gives_everyone_the_roots(device: torch.device) -> None:
    root = 3 % dist.get_world_size()
    for dtype in (*FLOATS, *INTEGERS, torch.bool):
        for size in SIZES:
            tensor = of(dist.get_rank(), size, dtype, device)
            dist.broadcast(tensor, root)
            same(tensor, of(root, size, dtype, device))


@case
def all_gather_in_both_forms(device: torch.device) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for dtype in (torch.float32, torch.bfloat16, torch.uint8, torch.int64):
        for size in SIZES:
            wanted = [of(r, size, dtype, device) for r in range(ranks)]
            whole = torch.empty(ranks * size, dtype=dtype, device=device)
            dist.all_gather_into_tensor(whole, of(rank, size, dtype, device))
            same(whole, torch.cat(wanted))
            parts = [torch.empty(size, dtype=dtype, device=device) for _ in range(ranks)]
            dist.all_gather(parts, of(rank, size, dtype, device))
            for part, want in zip(parts, wanted, strict=True):
                same(part, want)


@case
def reduce_scatter_in_both_forms(device: torch.device) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for dtype in (*FLOATS, torch.int64):
        for size in SIZES:
            whole = total(ranks * size, dtype, device=device)
            own = torch.empty(size, dtype=dtype, device=device)
            dist.reduce_scatter_tensor(own, of(rank, ranks * size, dtype, device))
            same(own, whole.chunk(ranks)[rank] if size else whole)
            if size:
                own = torch.empty(size, dtype=dtype, device=device)
                dist.reduce_scatter(own, list(of(rank, ranks * size, dtype, device).chunk(ranks)))
                same(own, whole.chunk(ranks)[rank])


@case
def all_to_all_even_and_uneven(device: torch.device) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for dtype in (torch.float32, torch.bfloat16, torch.uint8):
        given = (torch.arange(ranks * 3) + 16 * rank).to(dtype).to(device)
        got = torch.empty_like(given)
        dist.all_to_all_single(got, given)
        same(
            got, torch.cat([(torch.arange(3 * rank, 3 * rank + 3) + 16 * r).to(dtype) for r in range(ranks)]).to(device)
        )
    # Rank r sends i rows to rank i.
    rows = torch.full((sum(range(ranks)), 2), float(rank), device=device)
    mine = torch.empty(ranks * rank, 2, device=device)
    dist.all_to_all_single(mine, rows, [rank] * ranks, list(range(ranks)))
    same(mine, torch.arange(float(ranks), device=device).repeat_interleave(rank)[:, None].expand(-1, 2).contiguous())
    if dist.get_backend() == "gloo":
        return  # whose own lists do not take parts of such sizes
    # The same as lists, whose parts are of any shape.
    parts = [torch.full((i, 2), float(rank), device=device) for i in range(1, ranks + 1)]
    lists = [torch.empty(rank + 1, 2, device=device) for _ in range(ranks)]
    dist.all_to_all(lists, parts)
    for other, part in enumerate(lists):
        same(part, torch.full((rank + 1, 2), float(other), device=device))


@case
def gather_and_scatter(device: torch.device) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    one, two = 1 % ranks, 2 % ranks
    parts = [torch.empty(7, device=device) for _ in range(ranks)] if rank == one else None
    dist.gather(of(rank, device=device), parts, one)
    for other, part in enumerate(parts or ()):
        same(part, of(other, device=device))
    own = torch.empty(7, device=device)
    dist.scatter(own, [of(r, device=device) for r in range(ranks)] if rank == two else None, two)
    same(own, of(rank, device=device))


@of_at_least(2)
def messages_in_a_ring_one_by_one_and_in_batches(device: torch.device) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    right, left = (rank + 1) % ranks, (rank - 1) % ranks
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        for size in SIZES[1:]:
            got = torch.empty(size, dtype=dtype, device=device)
            ring = [
                dist.P2POp(dist.isend, of(rank, size, dtype, device), right),
                dist.P2POp(dist.irecv, got, left),
            ]
            for work in dist.batch_isend_irecv(ring):
                work.wait()
            same(got, of(left, size, dtype, device))
    if rank == 0:
        dist.send(of(0, device=device), ranks - 1)
    if rank == ranks - 1:
        got = torch.empty(7, device=device)
        dist.recv(got, 0)
        same(got, of(0, device=device))


@of_at_least(2)
def messages_of_a_pair_arrive_in_order(device: torch.device) -> None:
    rank = dist.get_rank()
    if rank in (0, 1):
        peer = 1 - rank
        given = [of(i, device=device) for i in range(5)]
        got = [torch.empty(7, device=device) for _ in range(5)]
        if device.type == "cuda":
            # Both sides' sends first would wait for one another: of NCCL the runtime asks for messages in batches only.
            batch = [dist.P2POp(dist.isend, tensor, peer) for tensor in given]
            works = dist.batch_isend_irecv([*batch, *(dist.P2POp(dist.irecv, tensor, peer) for tensor in got)])
        else:
            works = [dist.isend(tensor, peer) for tensor in given] + [dist.irecv(tensor, peer) for tensor in got]
        for work in works:
            work.wait()
        for i, tensor in enumerate(got):
            same(tensor, of(i, device=device))


@case
def objects_travel(device: torch.device) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    known: list[Any] = [None] * ranks
    dist.all_gather_object(known, {"rank": rank, "text": "x" * (rank * 100)})
    assert [entry["rank"] for entry in known] == list(range(ranks))
    root = 1 % ranks
    words: list[Any] = ["a", rank] if rank == root else [None, None]
    dist.broadcast_object_list(words, root)
    assert words == ["a", root]


@of_at_least(4)
def sub_groups_of_any_ranks(device: torch.device) -> None:
    rank = dist.get_rank()
    made = {ranks: dist.new_group(list(ranks)) for ranks in ((0, 1), (2, 3), (0, 2), (1, 2, 3), (3,))}
    for ranks, group in made.items():
        if rank not in ranks:
            continue
        assert dist.get_rank(group) == ranks.index(rank)
        tensor = of(rank, device=device)
        dist.all_reduce(tensor, group=group)
        same(tensor, total(ranks=ranks, device=device))
        tensor = of(rank, device=device)
        dist.broadcast(tensor, ranks[-1], group)
        same(tensor, of(ranks[-1], device=device))
        dist.barrier(group, device_ids=[device.index] if device.type == "cuda" else None)
    for ranks, group in made.items():
        if rank in ranks:
            dist.destroy_process_group(group)


@of_at_least(4)
def a_mesh_of_two_axes(device: torch.device) -> None:
    mesh = dist.init_device_mesh(device.type, (2, 2), mesh_dim_names=("outer", "inner"))
    rank = dist.get_rank()
    tensor = of(rank, device=device)
    dist.all_reduce(tensor, group=mesh.get_group("inner"))
    same(tensor, total(ranks=(rank // 2 * 2, rank // 2 * 2 + 1), device=device))
    dist.all_reduce(tensor, group=mesh.get_group("outer"))
    same(tensor, total(device=device))


@case
def many_collectives_in_flight(device: torch.device) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    group = dist.new_group([*range(1, ranks), 0])
    tensors = [of(rank + i, 100 + i, device=device) for i in range(32)]
    works = [dist.all_reduce(t, group=group if i % 2 else None, async_op=True) for i, t in enumerate(tensors)]
    for work in reversed(works):
        work.wait()
    for i, tensor in enumerate(tensors):
        same(tensor, total(100 + i, ranks=range(i, i + ranks), device=device))


@case
def futures_complete_and_chain(device: torch.device) -> None:
    tensor = of(dist.get_rank(), device=device)
    future = dist.all_reduce(tensor, async_op=True).get_future()
    halved = future.then(lambda done: done.value()[0] / 2)
    same(halved.wait(), total(device=device) / 2)


@case
def threads_use_a_group_each(device: torch.device) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    groups = [dist.new_group(list(range(ranks))) for _ in range(3)]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            # As the runtime's threads: sums of several groups in one stream would wait for one another.
            with torch.cuda.stream(torch.cuda.Stream(device) if device.type == "cuda" else None):
                for turn in range(10):
                    tensor = of(rank + number + turn, device=device)
                    dist.all_reduce(tensor, group=groups[number])
                    same(tensor, total(ranks=range(number + turn, number + turn + ranks), device=device))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


@case
def coalesced_forms(device: torch.device) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    from torch.distributed.distributed_c10d import _coalescing_manager

    tensors = [of(rank + i, 5 + i, device=device) for i in range(3)]
    with _coalescing_manager():
        for tensor in tensors:
            dist.all_reduce(tensor)
    for i, tensor in enumerate(tensors):
        same(tensor, total(5 + i, ranks=range(i, i + ranks), device=device))
    wholes = [torch.empty(ranks * (5 + i), device=device) for i in range(3)]
    with _coalescing_manager():
        for i, whole in enumerate(wholes):
            dist.all_gather_into_tensor(whole, of(rank + i, 5 + i, device=device))
    for i, whole in enumerate(wholes):
        same(whole, torch.cat([of(r + i, 5 + i, device=device) for r in range(ranks)]))
    owns = [torch.empty(5 + i, device=device) for i in range(3)]
    with _coalescing_manager():
        for i, own in enumerate(owns):
            dist.reduce_scatter_tensor(own, of(rank + i, ranks * (5 + i), device=device))
    for i, own in enumerate(owns):
        same(own, total(ranks * (5 + i), ranks=range(i, i + ranks), device=device).chunk(ranks)[rank])


@case
def functional_collectives_as_dtensor_uses_them(device: torch.device) -> None:
    ranks = dist.get_world_size()
    import torch.distributed._functional_collectives as functional

    rank, world = dist.get_rank(), dist.group.WORLD
    summed = functional.all_reduce(of(rank, device=device), "sum", world)
    same(summed + 0, total(device=device))
    # As older releases of torch call them, on which a machine with a GPU may have to be tried.
    names = ("all_gather_single", "reduce_scatter_single")
    older = (functional.all_gather_tensor, functional.reduce_scatter_tensor)
    gather, scatter = (getattr(functional, name, other) for name, other in zip(names, older, strict=True))
    gathered = gather(of(rank, device=device), 0, world)
    same(gathered + 0, torch.cat([of(r, device=device) for r in range(ranks)]))
    scattered = scatter(of(rank, 8, device=device), "sum", 0, world)
    same(scattered + 0, total(8, device=device).chunk(ranks)[rank])


@case
def misuse_is_refused_and_leaves_the_group_usable(device: torch.device) -> None:
    rank = dist.get_rank()
    for wrong in (
        lambda: dist.all_gather_into_tensor(torch.empty(3, device=device), torch.ones(7, device=device)),
        lambda: dist.reduce_scatter_tensor(torch.empty(3, device=device), torch.ones(7, device=device)),
    ):
        try:
            wrong()
        except (ValueError, RuntimeError):
            continue
        raise AssertionError("nothing was refused")
    tensor = of(rank, device=device)
    dist.all_reduce(tensor)
    same(tensor, total(device=device))


@case
def a_time_limit_can_be_set(device: torch.device) -> None:
    group = dist.group.WORLD
    assert group is not None
    group.set_timeout(timedelta(seconds=50))
    dist.barrier(device_ids=[device.index] if device.type == "cuda" else None)
