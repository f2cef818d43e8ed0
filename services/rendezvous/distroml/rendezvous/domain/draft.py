"""A decision in the making: events so far, the state after them, and the steps that several commands share."""

from __future__ import annotations

from distroml.rendezvous.domain import events as ev
from distroml.rendezvous.domain.evolve import evolve
from distroml.rendezvous.domain.model import (
    Cause,
    ExpectedMember,
    FailureCategory,
    Generation,
    Outcome,
    Phase,
    Rendezvous,
)
from distroml.rendezvous.domain.ranks import assign
from distroml.rendezvous.domain.waiting import Decision, gathering


class Draft:
    """Lives for one call of `decide`."""

    def __init__(self, state: Rendezvous, at_ms: int) -> None:
        self.state = state
        self.at_ms = at_ms
        self.events: list[ev.Event] = []

    def add(self, event: ev.Event) -> None:
        """Say that `event` happened."""
        self.events.append(event)
        self.state = evolve(self.state, event)

    def settle(self, waited_ms: int = 0) -> None:
        """Draw the consequences of who is joined and ready now."""
        if self.state.phase is Phase.OPENING:
            self._gather(waited_ms)
        elif self.state.current is not None and self.state.drain is not None:
            self._drained(self.state.current)
        elif self.state.current is not None and not self.state.stopping:
            self._watch(self.state.current)

    def open_next(self, reason: str, *, failures_left: int) -> None:
        """Open the next generation of this attempt, with the gang that a drain named where there was one."""
        gang = self.state.drain or self.state
        self.open(
            job=self.state.job,
            attempt=self.state.attempt,
            reason=reason,
            expected=gang.expected,
            min_workers=gang.min_workers,
            failures_left=failures_left,
            join_timeout_s=self.state.join_timeout_s,
        )

    def open(
        self,
        *,
        job: str,
        attempt: int,
        reason: str,
        expected: tuple[ExpectedMember, ...],
        min_workers: int,
        failures_left: int,
        join_timeout_s: int,
    ) -> None:
        """Open the next generation."""
        self.add(
            ev.GenerationOpened(
                at_ms=self.at_ms,
                job=job,
                number=self.state.number + 1,
                attempt=attempt,
                reason=reason,
                expected=expected,
                min_workers=min_workers,
                failures_left=failures_left,
                join_timeout_s=join_timeout_s,
            )
        )

    def break_up(
        self,
        cause: str,
        *,
        worker: str = "",
        category: FailureCategory = FailureCategory.UNSPECIFIED,
        message: str,
        counted: bool,
    ) -> None:
        """Break the generation in force; open the next one, or close where this failure was one too many."""
        formed = self.state.current
        assert formed is not None
        rank = self.state.rank(worker, formed.number)
        self.add(
            ev.GenerationBroken(
                at_ms=self.at_ms,
                number=formed.number,
                cause=cause,
                worker=worker,
                rank=rank,
                category=category,
                message=message,
            )
        )
        left = self.state.failures_left - (1 if counted else 0)
        if left >= 0:
            self.open_next(cause, failures_left=left)
            self.settle()
            return
        who = f"worker {worker} (rank {rank})" if worker else "a worker"
        text = f"{who} failed in generation {formed.number} and no retry is left: {message}"
        self.close(Outcome.FAILED, category=category, reason="RetryBudgetExhausted", message=text)

    def close(
        self,
        outcome: str,
        *,
        category: FailureCategory = FailureCategory.UNSPECIFIED,
        reason: str = "",
        message: str = "",
    ) -> None:
        """End the attempt."""
        self.add(
            ev.Closed(
                at_ms=self.at_ms,
                generation=self.state.number,
                outcome=outcome,
                category=category,
                reason=reason,
                message=message,
                attempt=self.state.attempt,
            )
        )

    def _gather(self, waited_ms: int) -> None:
        verdict = gathering(self.state, waited_ms)
        if verdict.decision is Decision.FORM:
            self._form()
        elif verdict.decision is Decision.GIVE_UP:
            self.close(
                Outcome.FAILED,
                category=FailureCategory.RENDEZVOUS_TIMEOUT,
                reason="RendezvousTimeout",
                message=f"generation {self.state.number} did not form: {verdict.reason}",
            )

    def _form(self) -> None:
        state = self.state
        members = assign(state.ready, state.expected, state.formed)
        generation = Generation(
            job=state.job,
            number=state.number,
            world_size=len(members),
            members=members,
            store_endpoint=state.joined[members[0].node].store_endpoint,
            mesh={"dp_replicate": len(members)},
            at_ms=self.at_ms,
            attempt=state.attempt,
        )
        self.add(ev.GenerationFormed(generation=generation))

    def _drained(self, formed: Generation) -> None:
        still_in = [node for node in formed.nodes if node in self.state.joined and not self.state.joined[node].ready]
        if self.state.drain is not None and not still_in:
            self.open_next(self.state.drain.reason, failures_left=self.state.failures_left)
            self.settle()

    def _watch(self, formed: Generation) -> None:
        present = [self.state.joined[node] for node in formed.nodes if node in self.state.joined]
        if present and all(node.ready for node in present):
            error = next((node.error for node in present if node.error), "no worker said why")
            self.break_up(Cause.WORKERS_LEFT, category=FailureCategory.EXCEPTION, message=error, counted=True)
            return
        waiting = [name for name in self.state.ready if name not in formed.nodes]
        if waiting:
            self.add(
                ev.DrainBegun(
                    number=formed.number,
                    reason=f"node {waiting[0]} is ready to take part",
                    expected=self.state.expected,
                    min_workers=self.state.min_workers,
                )
            )
