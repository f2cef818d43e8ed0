"""The link of a run that no agent started."""

from __future__ import annotations

from collections.abc import Callable

from distroml.runtime.link.port import Durable, P
from distroml.workerlink import AskLatest, CorruptionFound, Generation, Latest, Span, StepSample


class NullLink:
    """Takes every message and passes none on: `python train.py` and torchrun need no platform."""

    @property
    def attached(self) -> bool:
        """False: nobody listens."""
        return False

    def entered(self, generation: int) -> None:
        """Nothing to tell."""

    def progress(self, *, step: int, phase: str) -> None:
        """Nothing to tell."""

    def sample(self, sample: StepSample) -> None:
        """Nothing to tell."""

    def span(self, span: Span) -> None:
        """Nothing to tell."""

    def send(self, message: Durable) -> None:
        """Nothing to tell."""

    def subscribe(self, kind: type[P], callback: Callable[[P], None]) -> None:
        """No message ever comes."""

    def leave(self, generation: int, error: str) -> None:
        """Nothing to tell."""

    def wait_generation(self, after: int, timeout_s: float) -> Generation | None:
        """No generation ever comes: the launcher restarts the processes instead."""
        return None

    def ask(self, question: AskLatest | CorruptionFound, timeout_s: float) -> Latest | None:
        """No answer ever comes."""
        return None

    def flush(self, timeout_s: float) -> bool:
        """True: nothing waits."""
        return True

    def close(self, timeout_s: float) -> None:
        """Nothing to end."""
