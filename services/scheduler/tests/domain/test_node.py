from __future__ import annotations

from dataclasses import replace

import pytest

from distroml.events import given
from distroml.scheduler.domain import node as n
from distroml.scheduler.domain.node import NODE, NodeState
from distroml.scheduler.domain.spec import Slot

CONNECT = n.Connect(
    at_ms=1, node="a", boot_id="b1", agent_id="g1", slots=(Slot("0"),), address="h", labels={"rack": "1"}
)
REGISTERED = n.Registered(
    at_ms=1, node="a", boot_id="b1", agent_id="g1", slots=(Slot("0"),), address="h", labels={"rack": "1"}
)
LOST = n.Lost(at_ms=2, message="silent")
CORDONED = n.Cordoned(at_ms=2, actor="ann")


def test_a_new_node_is_registered():
    sentence = given(NODE).when(CONNECT)
    sentence.then(REGISTERED)
    assert (sentence.state.id, sentence.state.state) == ("a", NodeState.READY)


def test_an_agent_that_dials_again_is_no_news():
    given(NODE, REGISTERED).when(replace(CONNECT, at_ms=9)).then()


def test_a_replaced_agent_returns():
    given(NODE, REGISTERED).when(replace(CONNECT, at_ms=9, agent_id="g2")).then(n.Returned(at_ms=9, agent_id="g2"))


def test_a_lost_node_returns():
    sentence = given(NODE, REGISTERED, LOST).when(replace(CONNECT, at_ms=9))
    sentence.then(n.Returned(at_ms=9, agent_id="g1"))
    assert sentence.state.state is NodeState.READY


@pytest.mark.parametrize(
    "change", [{"boot_id": "b2"}, {"slots": (Slot("0"), Slot("1"))}, {"address": "i"}, {"labels": {}}]
)
def test_a_changed_node_is_registered_anew(change: dict[str, object]):
    sentence = given(NODE, REGISTERED, LOST).when(replace(CONNECT, **change))  # type: ignore[arg-type]
    sentence.then(replace(REGISTERED, **change))  # type: ignore[arg-type]
    assert sentence.state.state is NodeState.READY


def test_a_node_is_lost_once():
    lose = n.Lose(at_ms=2, message="silent")
    given(NODE, REGISTERED).when(lose).then(LOST)
    given(NODE, REGISTERED, LOST).when(lose).then()


def test_cordon_and_uncordon():
    given(NODE, REGISTERED).when(n.Cordon(at_ms=2, actor="ann")).then(CORDONED)
    given(NODE, REGISTERED, CORDONED).when(n.Cordon(at_ms=3)).then()
    given(NODE, REGISTERED, CORDONED).when(n.Uncordon(at_ms=3)).then(n.Uncordoned(at_ms=3))
    given(NODE, REGISTERED).when(n.Uncordon(at_ms=3)).then()


def test_a_cordoned_node_is_drained_when_it_is_empty():
    given(NODE, REGISTERED, CORDONED).when(n.Drain(at_ms=3)).then(n.Drained(at_ms=3))
    given(NODE, REGISTERED).when(n.Drain(at_ms=3)).then()
    assert given(NODE, REGISTERED, CORDONED, n.Drained(at_ms=3), n.Uncordoned(at_ms=4)).state.state is NodeState.READY


def test_a_cordon_outlives_a_loss():
    assert given(NODE, REGISTERED, CORDONED, LOST, n.Returned(at_ms=3, agent_id="g1")).state.state is NodeState.CORDONED
    assert given(NODE, REGISTERED, LOST, CORDONED).state.state is NodeState.LOST


@pytest.mark.parametrize(
    "command", [n.Lose(at_ms=1, message=""), n.Cordon(at_ms=1), n.Uncordon(at_ms=1), n.Drain(at_ms=1)]
)
def test_nothing_can_be_done_with_an_unknown_node(command: n.Command):
    given(NODE).when(command).then_rejected("NoSuchNode")
