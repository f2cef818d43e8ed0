"""A decision about an attempt in the making, and the few changes that all parts of it are made of: pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from distroml.agent.domain import effects, inputs
from distroml.agent.domain.effects import Effect
from distroml.agent.domain.exits import Intent
from distroml.agent.domain.gang import Attempt, Place, Process


@dataclass
class Step:
    """A decision in the making: the state so far and what is to be done."""

    state: Attempt
    effects: list[Effect] = field(default_factory=list[Effect])

    def do(self, *effects: Effect) -> None:
        """Add effects, in order."""
        self.effects.extend(effects)

    def set(self, **changes: object) -> None:
        """Change fields of the state."""
        self.state = replace(self.state, **changes)  # pyright: ignore[reportArgumentType] - fields of Attempt, checked by tests

    def place(self, worker: str) -> Place | None:
        """This worker's place, None where it has none."""
        return next((place for place in self.state.places if place.worker == worker), None)

    def put(self, place: Place) -> None:
        """`place` as it is now."""
        self.set(places=tuple(place if p.worker == place.worker else p for p in self.state.places))

    def change(self, worker: str, change: Callable[[Process], Process]) -> None:
        """Change the process in this worker's place, if there is one."""
        place = self.place(worker)
        if place is not None and place.process is not None:
            self.put(replace(place, process=change(place.process)))

    def end(self, place: Place, intent: Intent, why: str, *, grace_s: float) -> None:
        """End the process in `place`, with SIGKILL after `grace_s`."""
        process = place.process
        assert process is not None
        ended = replace(process, intent=intent, why=why, doomed=grace_s == 0)
        self.put(replace(place, process=ended))
        self.do(effects.EndWorker(place.worker, process.incarnation, grace_s, why))


def overdue_in(after_s: float, place: Place, process: Process, what: Intent, number: int) -> effects.Wake:
    """Look after `after_s` whether `process` has done what it was to do."""
    return effects.Wake(after_s, inputs.Overdue(place.worker, process.incarnation, what, number))
