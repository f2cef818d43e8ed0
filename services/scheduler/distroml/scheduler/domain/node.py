"""One node: registered by its agent, cordoned by a user, lost when its lease ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias, assert_never

from distroml.events import Decider, Rejection
from distroml.scheduler.domain import reasons
from distroml.scheduler.domain.spec import Slot


class NodeState(StrEnum):
    """Where a node stands. `NEW` is a stream without an event."""

    NEW = "new"
    READY = "ready"
    CORDONED = "cordoned"
    DRAINED = "drained"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """State of the stream `scheduler/node/<id>`. `cordoned` outlives a loss: such a node comes back cordoned."""

    id: str = ""
    state: NodeState = NodeState.NEW
    boot_id: str = ""
    agent_id: str = ""
    slots: tuple[Slot, ...] = ()
    address: str = ""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    cordoned: bool = False
    since_ms: int = 0


# ---- commands


@dataclass(frozen=True, slots=True, kw_only=True)
class Connect:
    """An agent says what its node is. One that is new, or was changed, is registered; one that was away returns."""

    at_ms: int
    node: str
    boot_id: str
    agent_id: str
    slots: tuple[Slot, ...]
    address: str = ""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Lose:
    """The node's lease ended."""

    at_ms: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cordon:
    """No new gang shall be placed on the node."""

    at_ms: int
    actor: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncordon:
    """The node may take gangs again."""

    at_ms: int
    actor: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """The cordoned node holds no attempt any more."""

    at_ms: int


Command: TypeAlias = Connect | Lose | Cordon | Uncordon | Drain


# ---- events: public, the messages `NodeX` of events.proto


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """The node is known with these slots."""

    at_ms: int
    node: str
    boot_id: str
    agent_id: str
    slots: tuple[Slot, ...]
    address: str = ""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Cordoned:
    """The node takes no new gang."""

    at_ms: int
    actor: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncordoned:
    """The node takes gangs again."""

    at_ms: int
    actor: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """The cordoned node is empty."""

    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Nothing was heard of the node for a whole lease."""

    at_ms: int
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """A lost node is back, or its agent was replaced."""

    at_ms: int
    agent_id: str


Event: TypeAlias = Registered | Cordoned | Uncordoned | Drained | Lost | Returned


def decide(node: Node, command: Command) -> tuple[Event, ...]:
    """The events that `command` leads to; raises `Rejection`."""
    if isinstance(command, Connect):
        return _connect(node, command)
    if node.state is NodeState.NEW:
        raise Rejection(reasons.NO_SUCH_NODE, "there is no such node; `distroml nodes` lists those there are")
    match command:
        case Lose(at_ms=at, message=message):
            return () if node.state is NodeState.LOST else (Lost(at_ms=at, message=message),)
        case Cordon(at_ms=at, actor=actor):
            return () if node.cordoned else (Cordoned(at_ms=at, actor=actor),)
        case Uncordon(at_ms=at, actor=actor):
            return (Uncordoned(at_ms=at, actor=actor),) if node.cordoned else ()
        case Drain(at_ms=at):
            return (Drained(at_ms=at),) if node.state is NodeState.CORDONED else ()
        case _:
            assert_never(command)


def _connect(node: Node, command: Connect) -> tuple[Event, ...]:
    known = (node.boot_id, node.slots, node.address, dict(node.labels))
    told = (command.boot_id, command.slots, command.address, dict(command.labels))
    if node.state is NodeState.NEW or known != told:
        return (
            Registered(
                at_ms=command.at_ms,
                node=command.node,
                boot_id=command.boot_id,
                agent_id=command.agent_id,
                slots=command.slots,
                address=command.address,
                labels=command.labels,
            ),
        )
    if node.state is NodeState.LOST or node.agent_id != command.agent_id:
        return (Returned(at_ms=command.at_ms, agent_id=command.agent_id),)
    return ()


def evolve(node: Node, event: Event) -> Node:
    """The node after `event`."""
    match event:
        case Registered():
            return replace(
                node,
                id=event.node,
                state=_present(node),
                boot_id=event.boot_id,
                agent_id=event.agent_id,
                slots=event.slots,
                address=event.address,
                labels=event.labels,
                since_ms=event.at_ms,
            )
        case Cordoned(at_ms=at):
            state = node.state if node.state is NodeState.LOST else NodeState.CORDONED
            return replace(node, cordoned=True, state=state, since_ms=at)
        case Uncordoned(at_ms=at):
            state = node.state if node.state is NodeState.LOST else NodeState.READY
            return replace(node, cordoned=False, state=state, since_ms=at)
        case Drained(at_ms=at):
            return replace(node, state=NodeState.DRAINED, since_ms=at)
        case Lost(at_ms=at):
            return replace(node, state=NodeState.LOST, since_ms=at)
        case Returned(at_ms=at, agent_id=agent_id):
            return replace(node, state=_present(node), agent_id=agent_id, since_ms=at)
        case _:
            assert_never(event)


def _present(node: Node) -> NodeState:
    if node.state is NodeState.DRAINED:
        return NodeState.DRAINED
    return NodeState.CORDONED if node.cordoned else NodeState.READY


NODE: Decider[Node, Command, Event] = Decider(initial=Node(), decide=decide, evolve=evolve)
