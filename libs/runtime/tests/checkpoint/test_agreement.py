"""What ranks agree on before a save, with the ranks' words simulated in one process."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

from distroml.objectstore.memory import open_object_store
from distroml.runtime.checkpoint import Agreed, Agreement, StateMismatch, UnsupportedState, Whole, capture, restore
from libs.runtime.tests.checkpoint.common import JOB, Opened, Outcomes, commit, same, save, saver


def agree(states: list[dict[str, object]], whole: Whole) -> list[Agreed]:
    """Each state by a rank on a thread of its own; a rank's error is raised."""
    barrier = threading.Barrier(len(states))
    said: list[object] = [None] * len(states)
    agreed: list[Agreed | Exception] = [ValueError("nothing")] * len(states)

    def gather_for(rank: int) -> Callable[[object], list[object]]:
        def gather(value: object) -> list[object]:
            said[rank] = value
            barrier.wait(10)
            everyone = list(said)
            barrier.wait(10)
            return everyone

        return gather

    def rank_main(rank: int) -> None:
        try:
            agreed[rank] = Agreement(rank, gather_for(rank), whole).agree(states[rank])
        except UnsupportedState as error:
            agreed[rank] = error

    threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(len(states))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for one in agreed:
        if isinstance(one, Exception):
            raise one
    return [one for one in agreed if isinstance(one, Agreed)]


class Three(nn.Module):
    def __init__(self, held: str = "abc") -> None:
        super().__init__()
        for index, name in enumerate("abc"):
            if name in held:
                self.register_parameter(name, nn.Parameter(torch.full((4, 3), float(index))))


WHOLE = Whole.of(Three())


def write(agreed: list[Agreed]) -> tuple[object, str]:
    store = open_object_store()
    results = []
    for rank, one in enumerate(agreed):
        outcomes = Outcomes()
        mine = saver(store, outcomes, rank, len(agreed))
        assert mine.begin(one, None, step=1, opened=Opened(1, "s0000000001"))
        outcomes.expect(1)
        mine.close(5)
        results += outcomes.saved
    return store, commit(store, results)


def test_plain_optimizer_state_of_stages_is_joined() -> None:
    """SGD without momentum on one stage and with it on another: neither's values are lost."""
    stages = [Three("ab"), Three("c")]
    optimizers = [torch.optim.SGD(stages[0].parameters(), lr=0.5), torch.optim.SGD(stages[1].parameters(), lr=0.5)]
    optimizers[0].state[stages[0].a]["note"] = "first"
    optimizers[1].state[stages[1].c]["momentum_buffer"] = torch.full((4, 3), 7.0)
    states = [capture(m, o, whole=WHOLE) for m, o in zip(stages, optimizers, strict=True)]
    store, sha = write(agree(states, WHOLE))
    model = Three()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    restore(store, JOB, sha, model, optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.state[model.a] == {"note": "first"}
    assert torch.equal(optimizer.state[model.c]["momentum_buffer"], torch.full((4, 3), 7.0))
    again = Three("ab")
    later = torch.optim.SGD(again.parameters(), lr=0.1)
    restore(store, JOB, sha, again, later, whole=WHOLE)
    assert dict(later.state) == {again.a: {"note": "first"}}
    with pytest.raises(StateMismatch, match="c is only in the checkpoint"):
        restore(store, JOB, sha, Three("ab"))


def test_state_that_is_one_value_loads_into_a_part() -> None:
    model = Three()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    optimizer.state[model.a]["note"] = "first"
    optimizer.state[model.c]["note"] = "third"
    store = open_object_store()
    sha, _ = save(store, capture(model, optimizer))
    part = Three("bc")
    later = torch.optim.SGD(part.parameters(), lr=0.1)
    restore(store, JOB, sha, part, later, whole=WHOLE)
    assert dict(later.state) == {part.c: {"note": "third"}}
    same(capture(part)["model"], {"b": model.b.detach(), "c": model.c.detach()})


def test_parts_that_make_no_whole_are_refused() -> None:
    with pytest.raises(UnsupportedState, match="different shapes or dtypes"):
        agree([{"model": {"a": torch.zeros(2)}}, {"model": {"a": torch.zeros(3)}}], WHOLE)
    groups = [{"params": ["a"]}, {"params": []}]
    with pytest.raises(UnsupportedState, match=r"\[1, 2\] parameter groups"):
        agree([{"optimizer": {"param_groups": groups}}, {"optimizer": {"param_groups": groups[:1]}}], WHOLE)


def test_a_rank_without_anything_takes_part() -> None:
    agreed = agree([{"model": {}}, {"model": {"a": torch.ones(2)}}], WHOLE)
    assert [len(one.items) for one in agreed] == [0, 1]
