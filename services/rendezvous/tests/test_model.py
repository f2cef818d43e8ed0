"""An explicit-state check of the real decider: every interleaving of a small world is visited, breadth first.

Two nodes with one worker each, which may finish at any time; node a's agent may be replaced, node b's worker may die
and its lease expire, every timer may fire. The network loses, repeats, delays and reorders whatever an agent ever
sent: each message may arrive at any later time, any number of times, or never. The service may crash between any two
commands: it comes back with the state that its stored parts give (`restarted`), and agents look where the job stands
whenever they like, or not at all, once they have joined.
"""

from __future__ import annotations

from collections import defaultdict, deque
from functools import cache
from typing import NamedTuple

from rendezvous_words import JOB, exited, join, lost, ready, worker

from distroml.events import Rejection
from distroml.rendezvous import domain as d
from distroml.rendezvous.adapters.codec import STATE
from distroml.rendezvous.adapters.keys import extra_parts
from distroml.rendezvous.domain import events as ev

NODES = ("a", "b")
MAX_GENERATION = 2


class Node(NamedTuple):
    """A node as it really is: which start of the agent, which generation its process is of (0: no process).

    `ended` is how its last process ended (generation, signal), on the disk of whichever agent comes.
    """

    agent: int = 0
    running: int = 0
    left: int = 0
    finished: int = 0
    ended: tuple[int, int] = (0, 0)


class World(NamedTuple):
    """`stored` and `sent` are places in STATES and COMMANDS, which makes them quick to compare.

    `trouble` counts down: deaths of workers, replacements of agents, expired leases.
    """

    stored: int
    nodes: tuple[Node, Node] = (Node(), Node())
    sent: frozenset[int] = frozenset()
    trouble: tuple[int, int, int] = (1, 1, 1)


STATES: list[d.Rendezvous] = []
COMMANDS: list[d.Command] = []
_places: dict[object, int] = {}


def restarted(state: d.Rendezvous) -> int:
    """The place of a state; what a restarted service reads back from its stored parts is exactly it."""
    parts = STATE.parts(state)
    key = tuple(sorted(parts.items()))
    if key not in _places:
        _places[key] = len(STATES)
        STATES.append(STATE.from_parts(parts))
        assert STATES[-1] == state
    return _places[key]


def place(command: d.Command) -> int:
    if command not in _places:
        _places[command] = len(COMMANDS)
        COMMANDS.append(command)
    return _places[command]


@cache
def joins(node: int, agents: int) -> list[int]:
    """What the node's agents so far may have sent, or send again."""
    return [place(join(NODES[node], agent=agent_id(node, agent), min_workers=1)) for agent in range(agents)]


@cache
def words(index: int, node: Node) -> frozenset[int]:
    """What a node has to say: that it is ready, and how its last process ended."""
    name, agent = NODES[index], agent_id(index, node.agent)
    said: list[d.Command] = []
    if node.running == 0 and not node.finished:
        said.append(ready(name, node.left, agent=agent))
    generation, signal = node.ended
    if generation:
        said.append(exited(name, generation, signal=signal, agent=agent))
    return frozenset(map(place, said))


def agent_id(node: int, agent: int) -> str:
    return f"{NODES[node]}{agent}"


@cache
def decided(stored: int, command: int) -> int:
    """The state after what the service commits, checked; the same where it refuses."""
    state = STATES[stored]
    try:
        events = tuple(d.RENDEZVOUS.decide(state, COMMANDS[command]))
    except Rejection:
        return stored
    after = d.RENDEZVOUS.fold(events, since=state)
    check(state, COMMANDS[command], events, after)
    return restarted(after)


def check(before: d.Rendezvous, command: d.Command, events: tuple[ev.Event, ...], after: d.Rendezvous) -> None:
    assert after.number >= before.number
    fences = [part.value for part in extra_parts(before, after) if part.key == f"fences/{JOB}"]
    opened = [event.number for event in events if isinstance(event, ev.GenerationOpened)]
    assert fences == ([str(opened[-1]).encode()] if opened else []), "the fence is the newest generation opened"
    state = before
    for event in events:
        if isinstance(event, ev.GenerationOpened):
            assert event.number == state.number + 1
        if isinstance(event, ev.GenerationFormed):
            formed = event.generation
            assert formed.number == state.number
            assert state.formed is None or formed.number > state.formed.number, "formed once per number"
            assert [m.rank for m in formed.members] == list(range(formed.world_size))
            assert all(state.joined[m.node].ready for m in formed.members), "a member was ready"
        state = d.RENDEZVOUS.evolve(state, event)
    broken = [event for event in events if isinstance(event, ev.GenerationBroken)]
    if broken and isinstance(command, d.ReportExit):
        assert command.generation == broken[0].number, "an exit broke a generation that is not its own"
    if after.attempt == before.attempt:
        assert before.failures_left - after.failures_left in ((0, 1) if broken else (0,)), "one failure a generation"


def successors(world: World):
    state = STATES[world.stored]
    deaths, replacements, expiries = world.trouble
    sent = (*joins(0, world.nodes[0].agent + 1), *joins(1, world.nodes[1].agent + 1), *world.sent)
    for stored in {decided(world.stored, command) for command in sent}:
        yield world._replace(stored=stored)
    wait, limit = d.waiting(state), d.limit_ms(state)
    if wait is not None and limit is not None:
        yield world._replace(stored=decided(world.stored, place(d.Tick(at_ms=0, waiting=wait, waited_ms=limit))))
    for index, node in enumerate(world.nodes):
        name, agent = NODES[index], agent_id(index, node.agent)

        def moving(now, *, node_index=index, **more):
            return world._replace(nodes=tuple(now if i == node_index else n for i, n in enumerate(world.nodes)), **more)

        speaks = state.joined[name].agent_id if name in state.joined else ""
        told, formed = speaks == agent, state.current
        if told and formed and formed.number > max(node.running, node.left) and name in formed.nodes:
            yield moving(node._replace(running=formed.number, finished=0))
        if told and node.running and state.number > node.running:
            yield moving(node._replace(running=0, left=node.running))
        if told and node.running == 0 and node.left < state.number - 1:
            yield moving(node._replace(left=state.number - 1))
        if told and node.finished and state.number > node.finished and state.phase is not d.Phase.CLOSED:
            yield moving(node._replace(finished=0))
        if node.running:
            ended = node._replace(running=0, left=node.running)
            yield moving(ended._replace(finished=node.running, ended=(node.running, 0)))
            if deaths and index == 1:
                trouble = (deaths - 1, replacements, expiries)
                yield moving(ended._replace(ended=(node.running, 9)), trouble=trouble)
        if replacements and index == 0:
            trouble = (deaths, replacements - 1, expiries)
            yield moving(node._replace(agent=node.agent + 1), trouble=trouble)
        if speaks:
            stored = decided(world.stored, place(lost(name, agent=speaks)))
            if not told:
                # A join of the replaced agent came late; nobody renews that lease.
                yield world._replace(stored=stored)
            elif expiries and index == 1:
                yield world._replace(stored=stored, trouble=(deaths, replacements, expiries - 1))


def spoken(world: World) -> World:
    """With everything sent that the nodes have to say: sending early only lets it arrive earlier, or never."""
    said = [words(index, node) for index, node in enumerate(world.nodes)]
    return world._replace(sent=world.sent.union(*said))


def check_world(world: World) -> None:
    state = STATES[world.stored]
    assert all(node.running <= state.number for node in world.nodes), "nobody runs ahead of the service"
    if (formed := state.current) is not None:
        running = {world.nodes[NODES.index(node)].running for node in formed.nodes}
        assert running <= {0, formed.number}, "a generation formed with a worker that had not left an older one"
    if state.ending and state.ending.outcome == "Succeeded":
        assert state.formed is not None
        for member in state.formed.members:
            said = {
                (c.generation, c.code, c.signal)
                for c in (COMMANDS[place] for place in world.sent)
                if isinstance(c, d.ReportExit) and c.worker == member.worker
            }
            assert (state.formed.number, 0, 0) in said, "a success without its worker's word"


def test_every_reachable_world_keeps_the_rules_and_can_still_end():
    start = spoken(World(restarted(d.RENDEZVOUS.initial)))
    seen, queue = {start}, deque([start])
    before: dict[World, list[World]] = defaultdict(list)
    ended: list[World] = []
    while queue:
        world = queue.popleft()
        check_world(world)
        state = STATES[world.stored]
        if state.phase is d.Phase.CLOSED or state.number > MAX_GENERATION:
            ended.append(world)
            continue
        for following in map(spoken, successors(world)):
            before[following].append(world)
            if following not in seen:
                seen.add(following)
                queue.append(following)
    # No world is stuck: from each there is a way to an end.
    can_end, queue = set(ended), deque(ended)
    while queue:
        for earlier in before[queue.popleft()]:
            if earlier not in can_end:
                can_end.add(earlier)
                queue.append(earlier)
    assert can_end == seen
    outcomes = {s.ending.outcome for s in STATES if s.ending}
    assert outcomes == {"Succeeded", "Failed"}
    assert len(seen) > 10_000, len(seen)
    assert any(worker("a") in s.finished for s in STATES)
