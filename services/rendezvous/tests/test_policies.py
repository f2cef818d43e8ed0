"""The quorum and the ranks, as pure functions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rendezvous_words import after, exited, formed_pair, gang, join

from distroml.rendezvous import domain as d
from distroml.rendezvous.domain.ranks import assign
from distroml.rendezvous.domain.retirement import is_settled
from distroml.rendezvous.domain.waiting import Decision, quorum


@pytest.mark.parametrize(
    ("waited_s", "ready", "decision", "words"),
    [
        (0, 8, Decision.FORM, "all 8 workers are ready"),
        (0, 7, Decision.WAIT, "7 of 8 workers are ready; waits for the others until 30 s have passed"),
        (30, 7, Decision.FORM, "7 of 8 workers are ready after 30 s, and 4 may start"),
        (30, 3, Decision.WAIT, "3 of 8 workers are ready; waits for at least 4"),
        (60, 3, Decision.GIVE_UP, "3 of 8 workers are ready after 60 s, and fewer than 4 may not start"),
    ],
)
def test_the_quorum_says_what_and_why(waited_s, ready, decision, words):
    verdict = quorum(waited_s * 1000, ready=ready, expected=8, min_workers=4, timeout_ms=30_000)
    assert (verdict.decision, verdict.reason) == (decision, words)


@given(st.integers(0, 9), st.integers(1, 8), st.integers(0, 200_000))
def test_a_verdict_holds_until_it_says(ready, min_workers, waited_ms):
    def at(ms: int) -> Decision:
        return quorum(ms, ready=ready, expected=8, min_workers=min_workers, timeout_ms=30_000).decision

    first = quorum(0, ready=ready, expected=8, min_workers=min_workers, timeout_ms=30_000)
    assert at(min(waited_ms, max(first.again_ms - 1, 0))) is first.decision
    if first.decision is Decision.WAIT:
        assert at(first.again_ms) is not Decision.WAIT


def nodes(**sizes: int) -> dict[str, d.JoinedNode]:
    return {
        name: d.JoinedNode(
            agent_id="x",
            workers=tuple(f"{name}{i}" for i in range(size)),
            store_endpoint="",
            address="",
            declared="",
            ready=True,
        )
        for name, size in sizes.items()
    }


def generation(**sizes: int) -> d.Generation:
    members = assign(nodes(**sizes), gang(**sizes), None)
    return d.Generation(
        job="j", number=1, world_size=len(members), members=members, store_endpoint="", mesh={}, at_ms=0, attempt=1
    )


def order(members: tuple[d.Member, ...]) -> list[str]:
    return [m.worker for m in members]


def test_a_replacement_node_takes_the_dead_ones_ranks():
    before = generation(a=2, b=2, c=2)
    assert order(assign(nodes(a=2, c=2, x=2), gang(a=2, x=2, c=2), before)) == ["a0", "a1", "x0", "x1", "c0", "c1"]


def test_a_newcomer_of_the_same_size_is_preferred_so_that_survivors_keep_their_ranks():
    before = generation(a=2, b=1)
    assert order(assign(nodes(b=1, x=1, y=2), gang(x=1, y=2, b=1), before)) == ["y0", "y1", "b0", "x0"]


def test_a_place_without_heir_closes_up():
    assert order(assign(nodes(b=1, c=1), gang(b=1, c=1), generation(a=1, b=1, c=1))) == ["b0", "c0"]


sizes = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 3), min_size=1)


@given(sizes, sizes)
def test_ranks_are_a_permutation_in_blocks_by_node(before, now):
    members = assign(nodes(**now), gang(**now), generation(**before))
    assert [m.rank for m in members] == list(range(sum(now.values())))
    assert sorted(order(members)) == sorted(w for node in nodes(**now).values() for w in node.workers)
    blocks = list(dict.fromkeys(m.node for m in members))
    assert [m.node for m in members] == [name for name in blocks for _ in range(now[name])]
    assert all(blocks[m.node_rank] == m.node and m.local_world_size == now[m.node] for m in members)
    for name in blocks:
        assert [m.local_rank for m in members if m.node == name] == list(range(now[name]))


@given(sizes)
def test_the_same_gang_keeps_every_rank(now):
    before = generation(**now)
    backwards = dict(reversed(list(now.items())))
    assert assign(nodes(**backwards), gang(**backwards), before) == before.members


@pytest.mark.parametrize(
    ("said", "settled"),
    [
        ((*formed_pair(), exited("a"), exited("b")), True),
        ((*formed_pair(), exited("a"), exited("b"), join("a", attempt=2)), False),
        (formed_pair(), False),
    ],
)
def test_a_stream_is_settled_while_no_attempt_is_under_way(said, settled):
    assert is_settled(after(*said).state) is settled
