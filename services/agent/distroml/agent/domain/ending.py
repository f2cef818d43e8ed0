"""How an attempt ends on a node: by an order, because rendezvous closed, or because it cannot begin. Pure."""

from __future__ import annotations

from dataclasses import replace

from distroml.agent.domain import effects, gang
from distroml.agent.domain.decision import Step, overdue_in
from distroml.agent.domain.exits import Category, Intent
from distroml.agent.domain.gang import Order, Phase
from distroml.workerlink import Stop


def take_order(s: Step, order: Order) -> None:
    """The attempt is to end; an order with less grace overrides one with more."""
    if s.state.order is not None:
        harder = order.grace_s < s.state.order.grace_s
        if not harder:
            return
    s.set(order=order)
    ask_to_stop(s, order)


def ask_to_stop(s: Step, order: Order, only: str = "") -> None:
    """Have processes end as `order` says: all, or `only` that of one worker."""
    text = f"the attempt ends: {order.reason}"
    for place in s.state.places:
        process = place.process
        if process is None or process.doomed or (only and place.worker != only):
            continue
        if process.managed and process.connected:
            message = Stop(reason=order.reason, grace_s=max(1, int(order.grace_s)), checkpoint=order.checkpoint)
            s.do(effects.Tell(place.worker, message), overdue_in(order.grace_s, place, process, Intent.STOP, 0))
            s.change(place.worker, lambda p: replace(p, intent=Intent.STOP, why=text))
        else:
            s.end(place, Intent.STOP, text, grace_s=order.grace_s)


def close(s: Step, outcome: str, category: Category, message: str) -> None:
    """Rendezvous closed: nothing of the attempt will run again."""
    if s.state.closed:
        return
    s.set(closed=True, joined=False, category=category, message=message)
    if s.state.order is None:
        take_order(s, Order(reason=outcome, grace_s=min(s.state.grace_s, gang.REMOVED_GRACE_S), checkpoint=False))


def give_up(s: Step, message: str) -> None:
    """The attempt cannot be prepared on this node."""
    if s.state.phase in (Phase.STOPPED, Phase.FAILED):
        return
    if s.state.joined and not s.state.left:
        s.set(left=True)
        s.do(effects.Leave(message))
    for place in s.state.places:
        if place.process is not None and not place.process.doomed:
            s.end(place, Intent.STOP, message, grace_s=0)
    s.set(phase=Phase.FAILED, category=Category.SETUP, message=message)
    s.do(effects.Observe(Phase.FAILED, Category.SETUP, message))


def finish(s: Step) -> None:
    """Once no process is left, the attempt is over on this node."""
    assert s.state.order is not None
    if any(place.process is not None for place in s.state.places) or s.state.phase is Phase.STOPPED:
        return
    if not s.state.closed and s.state.prepared and not s.state.left:
        s.set(left=True)
        s.do(effects.Leave(s.state.order.reason))
    s.set(phase=Phase.STOPPED)
    s.do(effects.Observe(Phase.STOPPED, s.state.category, s.state.message))
