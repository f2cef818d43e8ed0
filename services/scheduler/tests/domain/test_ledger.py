from __future__ import annotations

import pytest

from distroml.events import given
from distroml.scheduler.domain import ledger as pool
from distroml.scheduler.domain.ledger import LEDGER, Holding, Share
from distroml.scheduler.domain.spec import Placement, Slot

SLOTS = (Slot("0"), Slot("1"))
OFFERED = (pool.SlotsOffered(node="a", slots=SLOTS), pool.SlotsOffered(node="b", slots=SLOTS))
ON_A = (Placement("a", ("0", "1")),)
ON_BOTH = (*ON_A, Placement("b", ("0",)))
HELD = (*OFFERED, pool.SlotsAssigned(job="j", attempt=1, placement=ON_BOTH))
STOPPED_ON_A = (*HELD, pool.AttemptStopped(job="j", attempt=1, node="a"))


def test_slots_are_offered_once():
    given(LEDGER).when(pool.OfferSlots(node="a", slots=SLOTS)).then(OFFERED[0])
    given(LEDGER, *OFFERED).when(pool.OfferSlots(node="a", slots=SLOTS)).then()


def test_a_lost_node_offers_nothing_until_it_is_back():
    lost = pool.NodeWithdrawn(node="a", lost=True)
    given(LEDGER, *OFFERED).when(pool.WithdrawNode(node="a", lost=True)).then(lost)
    state = given(LEDGER, *OFFERED, lost).state
    assert (set(state.free()), set(state.capacity())) == ({"b"}, {"b"})
    given(LEDGER, *OFFERED, lost).when(pool.WithdrawNode(node="a", lost=True)).then()
    given(LEDGER, *OFFERED, lost).when(pool.OfferSlots(node="a", slots=SLOTS)).then(OFFERED[0])


def test_a_closed_node_that_is_lost_is_lost():
    closed = pool.NodeWithdrawn(node="a", lost=False)
    lost = pool.NodeWithdrawn(node="a", lost=True)
    given(LEDGER, *OFFERED, closed).when(pool.WithdrawNode(node="a", lost=True)).then(lost)
    given(LEDGER, *OFFERED, closed).when(pool.WithdrawNode(node="a", lost=False)).then()


def test_withdrawing_a_node_that_offers_nothing_is_no_news():
    given(LEDGER).when(pool.WithdrawNode(node="a", lost=True)).then()


def test_assigned_slots_are_not_free():
    sentence = given(LEDGER, *OFFERED).when(pool.Assign(job="j", attempt=1, placement=ON_BOTH))
    sentence.then(HELD[-1])
    assert sentence.state.free() == {"b": (Slot("1"),)}
    assert sentence.state.held() == {("a", "0"): "j", ("a", "1"): "j", ("b", "0"): "j"}


def test_assigning_again_is_no_news():
    given(LEDGER, *HELD).when(pool.Assign(job="j", attempt=1, placement=ON_BOTH)).then()


def test_a_slot_is_never_given_twice():
    given(LEDGER, *HELD).when(pool.Assign(job="k", attempt=1, placement=ON_A)).then_rejected("SlotTaken")


@pytest.mark.parametrize("placement", [(Placement("c", ("0",)),), (Placement("a", ("7",)),)])
def test_only_offered_slots_are_given(placement: tuple[Placement, ...]):
    command = pool.Assign(job="k", attempt=1, placement=placement)
    given(LEDGER, *OFFERED).when(command).then_rejected("SlotNotOffered")


@pytest.mark.parametrize("lost", [True, False])
def test_slots_of_a_withdrawn_node_are_not_given(lost: bool):
    history = (*OFFERED, pool.NodeWithdrawn(node="a", lost=lost))
    given(LEDGER, *history).when(pool.Assign(job="k", attempt=1, placement=ON_A)).then_rejected("SlotNotOffered")


def test_slots_stay_held_until_nothing_runs_on_them():
    free = pool.Free(job="j", attempt=1, node="a")
    given(LEDGER, *HELD).when(free).then_rejected("StillRunning")
    given(LEDGER, *STOPPED_ON_A).when(free).then(pool.SlotsFreed(job="j", attempt=1, node="a", slots=("0", "1")))


def test_slots_of_a_lost_node_can_be_taken_back():
    history = (*HELD, pool.NodeWithdrawn(node="a", lost=True))
    sentence = given(LEDGER, *history).when(pool.Free(job="j", attempt=1, node="a"))
    sentence.then(pool.SlotsFreed(job="j", attempt=1, node="a", slots=("0", "1")))
    holding = sentence.state.holding("j", 1)
    assert holding is not None
    assert holding.gang == (Placement("b", ("0",)),)


def test_freeing_what_is_not_held_is_no_news():
    given(LEDGER, *HELD).when(pool.Free(job="k", attempt=1, node="a")).then()
    given(LEDGER, *HELD).when(pool.Free(job="j", attempt=1, node="c")).then()


def test_the_last_freed_slot_ends_the_holding():
    freed = (
        pool.SlotsFreed(job="j", attempt=1, node="a", slots=("0", "1")),
        pool.SlotsFreed(job="j", attempt=1, node="b", slots=("0",)),
    )
    assert given(LEDGER, *HELD, *freed).state.holdings == {}


def test_a_stop_is_noted_once():
    command = pool.NoteStopped(job="j", attempt=1, node="a")
    given(LEDGER, *HELD).when(command).then(STOPPED_ON_A[-1])
    given(LEDGER, *STOPPED_ON_A).when(command).then()
    given(LEDGER, *OFFERED).when(command).then()


# ---- resize


def test_a_growing_gang_is_assigned_what_it_lacks():
    grown = (*ON_A, Placement("b", ("0", "1")))
    sentence = given(LEDGER, *HELD).when(pool.Reassign(job="j", attempt=1, placement=grown))
    sentence.then(pool.SlotsAssigned(job="j", attempt=1, placement=(Placement("b", ("1",)),)))
    holding = sentence.state.holding("j", 1)
    assert holding is not None
    assert holding.gang == grown


def test_a_shrinking_gang_holds_what_it_leaves_until_nothing_runs_there():
    sentence = given(LEDGER, *HELD).when(pool.Reassign(job="j", attempt=1, placement=(Placement("a", ("0",)),)))
    leaving = pool.SlotsLeaving(job="j", attempt=1, placement=(Placement("a", ("1",)), Placement("b", ("0",))))
    sentence.then(leaving)
    state = sentence.state
    assert state.holding("j", 1) == Holding("j", 1, (Share("a", ("0",), ("1",)), Share("b", (), ("0",))))
    assert state.free() == {"b": (Slot("1"),)}
    given(LEDGER, *HELD, leaving).when(pool.NoteLeft(job="j", attempt=1, node="a", slots=("0", "1"))).then(
        pool.SlotsFreed(job="j", attempt=1, node="a", slots=("1",))
    )
    given(LEDGER, *HELD, leaving).when(pool.NoteStopped(job="j", attempt=1, node="b")).then(
        pool.SlotsFreed(job="j", attempt=1, node="b", slots=("0",))
    )


def test_a_node_that_is_being_left_cannot_be_joined_again():
    leaving = pool.SlotsLeaving(job="j", attempt=1, placement=(Placement("b", ("0",)),))
    command = pool.Reassign(job="j", attempt=1, placement=(*ON_A, Placement("b", ("1",))))
    given(LEDGER, *HELD, leaving).when(command).then_rejected("StillRunning")


def test_only_what_is_held_can_be_changed():
    given(LEDGER, *OFFERED).when(pool.Reassign(job="j", attempt=1, placement=ON_A)).then_rejected("NotHeld")


def test_leaving_slots_are_noted_once():
    given(LEDGER, *HELD).when(pool.NoteLeft(job="j", attempt=1, node="a", slots=("0",))).then()
