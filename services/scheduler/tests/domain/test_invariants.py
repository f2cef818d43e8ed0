"""Random lives of a small cluster, in memory: whatever happens in whatever order, the promises hold."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from distroml.events import Rejection
from distroml.scheduler.domain import job as jobs_
from distroml.scheduler.domain import ledger as pool
from distroml.scheduler.domain import node as nodes_
from distroml.scheduler.domain.desired import desired
from distroml.scheduler.domain.job import JOB, Job, JobState
from distroml.scheduler.domain.job import commands as c
from distroml.scheduler.domain.job import events as e
from distroml.scheduler.domain.ledger import LEDGER
from distroml.scheduler.domain.node import NODE, NodeState
from distroml.scheduler.domain.plan import Snapshot, Step, place_queue, settle
from distroml.scheduler.domain.queue import STRICT_FIFO
from distroml.scheduler.domain.spec import FailureCategory, JobSpec, RetryPolicy, Slot, WorkerRange

NODES = ("a", "b", "c")
node_names = st.sampled_from(NODES)
job_indexes = st.integers(0, 5)
sizes = st.integers(1, 6)


class Cluster(RuleBasedStateMachine):
    """Drives the three deciders as the shell does: a step commits on the job and the ledger, or not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.at = 0
        self.jobs: dict[str, list[e.Event]] = {}
        self.nodes: dict[str, list[nodes_.Event]] = {name: [] for name in NODES}
        self.pool: list[pool.Event] = []
        self.states: dict[str, Job] = {}
        self.ledger = LEDGER.initial
        self.seen: dict[str, tuple[int, int, int]] = {}
        # Where processes run: (job, attempt, node) to slots; what the ledger must never give away.
        self.processes: dict[tuple[str, int, str], set[str]] = {}

    # ---- the shell

    def tick(self) -> int:
        self.at += 1
        return self.at

    def job_do(self, job: str, commands: Iterable[c.Command], ledger: Iterable[pool.Command] = ()) -> bool:
        state, lstate = self.states[job], self.ledger
        job_events: list[e.Event] = []
        pool_events: list[pool.Event] = []
        try:
            for command in commands:
                new = JOB.decide(state, command)
                state = JOB.fold(new, since=state)
                job_events += new
            for one in ledger:
                more = LEDGER.decide(lstate, one)
                lstate = LEDGER.fold(more, since=lstate)
                pool_events += more
        except Rejection:
            return False
        self.states[job], self.ledger = state, lstate
        self.jobs[job] += job_events
        self.pool += pool_events
        return True

    def node_do(self, node: str, command: nodes_.Command, ledger: Iterable[pool.Command] = ()) -> None:
        self.nodes[node] += NODE.decide(NODE.fold(self.nodes[node]), command)
        self.pool_do(*ledger)

    def pool_do(self, *commands: pool.Command) -> None:
        for command in commands:
            new = LEDGER.decide(self.ledger, command)
            self.ledger = LEDGER.fold(new, since=self.ledger)
            self.pool += new

    def snapshot(self) -> Snapshot:
        nodes = {name: NODE.fold(events) for name, events in self.nodes.items()}
        return Snapshot(dict(self.states), nodes, self.ledger)

    def commit(self, step: Step) -> None:
        if step.node:
            for command in step.node_commands:
                self.node_do(step.node, command)
        if step.job:
            assert self.job_do(step.job, step.job_commands, step.ledger_commands), f"the plan was refused: {step}"

    def names(self) -> list[str]:
        return sorted(self.states)

    def pick(self, index: int) -> str | None:
        names = self.names()
        return names[index % len(names)] if names else None

    # ---- what users do

    @initialize()
    def start(self) -> None:
        self.connect("a")

    @rule(
        low=sizes,
        more=st.integers(0, 3),
        per_node=st.sampled_from([0, 0, 2]),
        failures=st.integers(0, 2),
        priority=st.integers(0, 2),
    )
    def submit(self, low: int, more: int, per_node: int, failures: int, priority: int) -> None:
        if len(self.states) >= 6:
            return
        low = per_node or low
        spec = JobSpec(
            name="n",
            workers=WorkerRange(low, low + more, per_node),
            priority=priority,
            retry=RetryPolicy(failures, max_preemptions=failures),
        )
        name = f"j{len(self.states)}"
        self.states[name], self.jobs[name] = Job(), []
        self.job_do(name, [c.Submit(at_ms=self.tick(), job=name, spec=spec)])

    @rule(index=job_indexes, what=st.sampled_from(["pause", "resume", "cancel"]))
    def ask(self, index: int, what: str) -> None:
        if job := self.pick(index):
            at = self.tick()
            command = {"pause": c.Pause(at_ms=at), "resume": c.Resume(at_ms=at), "cancel": c.Cancel(at_ms=at)}[what]
            self.job_do(job, [command])

    @rule(index=job_indexes, low=sizes, more=st.integers(0, 3))
    def resize(self, index: int, low: int, more: int) -> None:
        if job := self.pick(index):
            self.job_do(job, [c.Resize(at_ms=self.tick(), min_workers=low, max_workers=low + more)])

    # ---- what nodes do

    @rule(name=node_names, slots=st.sampled_from([1, 2, 4]), boot=st.integers(0, 3))
    def connect_other(self, name: str, slots: int, boot: int) -> None:
        if self.nodes[name] and NODE.fold(self.nodes[name]).state is not NodeState.LOST:
            return
        # The agent is let back in only after what it still ran without holding it has ended.
        for job, attempt, node in list(self.processes):
            if node == name and self.ledger.holding(job, attempt) is None:
                del self.processes[job, attempt, node]
        self.connect(name, slots, boot)

    def connect(self, name: str, slots: int = 2, boot: int = 0) -> None:
        offered = tuple(Slot(str(index)) for index in range(slots))
        command = nodes_.Connect(at_ms=self.tick(), node=name, boot_id=str(boot), agent_id="g", slots=offered)
        self.node_do(name, command, [pool.OfferSlots(node=name, slots=offered)])

    @rule(name=node_names)
    def lose(self, name: str) -> None:
        if self.nodes[name]:
            lose = nodes_.Lose(at_ms=self.tick(), message="silent")
            self.node_do(name, lose, [pool.WithdrawNode(node=name, lost=True)])
            self.processes = {key: slots for key, slots in self.processes.items() if key[2] != name}

    @rule(name=node_names)
    def obey(self, name: str) -> None:
        """The agent makes its desired state so, and reports."""
        if not self.nodes[name] or NODE.fold(self.nodes[name]).state is NodeState.LOST:
            return
        for attempt in desired(self.ledger, self.states, name):
            key = (attempt.job, attempt.attempt, name)
            if attempt.stop is None:
                self.processes[key] = set(attempt.slots)
                share = self.ledger.holdings[f"{attempt.job}.{attempt.attempt}"].share(name)
                assert share is not None
                self.pool_do(pool.NoteLeft(job=attempt.job, attempt=attempt.attempt, node=name, slots=share.leaving))
            else:
                self.processes.pop(key, None)
                self.pool_do(pool.NoteStopped(job=attempt.job, attempt=attempt.attempt, node=name))

    @rule(index=job_indexes, name=node_names)
    def fail_setup(self, index: int, name: str) -> None:
        if job := self.pick(index):
            attempt = self.states[job].attempt
            command = c.FailAttempt(at_ms=self.tick(), attempt=attempt, node=name, category=FailureCategory.SETUP)
            self.job_do(job, [command])

    # ---- what rendezvous says

    @rule(index=job_indexes, attempts_ago=st.integers(0, 1), newer=st.integers(0, 1))
    def form(self, index: int, attempts_ago: int, newer: int) -> None:
        if job := self.pick(index):
            state = self.states[job]
            start = c.Start(
                at_ms=self.tick(), attempt=state.attempt - attempts_ago, generation=state.generation + newer
            )
            self.job_do(job, [start])

    @rule(index=job_indexes)
    def break_generation(self, index: int) -> None:
        if job := self.pick(index):
            generation = self.states[job].generation
            command = c.CountFailure(at_ms=self.tick(), generation=generation, category=FailureCategory.SIGNAL)
            self.job_do(job, [command])

    @rule(
        index=job_indexes, outcome=st.sampled_from(["Succeeded", "Failed", "Stopped"]), attempts_ago=st.integers(0, 1)
    )
    def close(self, index: int, outcome: str, attempts_ago: int) -> None:
        if job := self.pick(index):
            attempt = self.states[job].attempt - attempts_ago
            self.job_do(job, [c.Finish(at_ms=self.tick(), attempt=attempt, outcome=outcome)])  # type: ignore[arg-type]

    # ---- what the scheduler does

    @rule()
    def cycle(self) -> None:
        for step in settle(self.snapshot(), self.tick()):
            self.commit(step)
        assert settle(self.snapshot(), self.tick()) == (), "settling once is settling for good"
        plan = place_queue(self.snapshot(), STRICT_FIFO, self.tick())
        for step in plan.steps:
            self.commit(step)
        for name, state in self.states.items():
            if state.state is JobState.QUEUED:
                assert plan.pending[name].reason, "every waiting job has a reason"
                assert plan.pending[name].message

    # ---- the promises

    @invariant()
    def a_slot_is_never_in_two_gangs(self) -> None:
        held = [
            (share.node, slot)
            for holding in self.ledger.holdings.values()
            for share in holding.shares
            for slot in (*share.slots, *share.leaving)
        ]
        assert len(held) == len(set(held))

    @invariant()
    def no_process_runs_on_a_slot_that_somebody_else_holds(self) -> None:
        held = self.ledger.held()
        for (job, _, node), slots in self.processes.items():
            assert all(held.get((node, slot)) == job for slot in slots)

    @invariant()
    def the_ledger_holds_exactly_the_gangs_of_active_jobs(self) -> None:
        for name, job in self.states.items():
            if job.active:
                holding = self.ledger.holding(name, job.attempt)
                assert holding is not None
                assert holding.gang == job.placement
        for holding in self.ledger.holdings.values():
            job = self.states[holding.job]
            stopping = job.state in jobs_.STOPPING or job.finished
            assert holding.attempt == job.attempt
            assert job.active or stopping, f"a job that is {job.state} holds slots"

    @invariant()
    def finished_jobs_have_no_gang_and_hold_only_what_is_told_to_stop(self) -> None:
        for job in self.states.values():
            if job.finished:
                assert job.placement == ()
        for node in NODES:
            for attempt in desired(self.ledger, self.states, node):
                assert attempt.stop is not None or self.states[attempt.job].active

    @invariant()
    def numbers_never_go_back(self) -> None:
        for name, job in self.states.items():
            now = (job.attempt, job.generation, job.failures)
            before = self.seen.get(name, (0, 0, 0))
            assert all(new >= old for new, old in zip(now, before, strict=True))
            self.seen[name] = now

    @invariant()
    def state_is_the_fold_of_its_log(self) -> None:
        assert LEDGER.fold(self.pool) == self.ledger
        for name, job in self.states.items():
            assert JOB.fold(self.jobs[name]) == job


Cluster.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestCluster = Cluster.TestCase
