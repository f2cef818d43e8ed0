"""What waits to be sent to the agent: bounded, and safe to use from any thread."""

from __future__ import annotations

import threading
from collections import deque

from msgspec import structs

from distroml.workerlink import (
    AskLatest,
    AwaitGeneration,
    CheckpointCommitted,
    CheckpointFailed,
    CorruptionFound,
    Generation,
    Latest,
    Message,
    Samples,
    SaveBegun,
    SaveOpened,
    SaveRefused,
    ShardSaved,
    Span,
    StepSample,
)

MAX_DURABLE = 1024
MAX_SAMPLES = 4096
MAX_SPANS = 512
MAX_BATCH = 512

Key = tuple[str, int]


def _expects(message: Message) -> Key | None:
    """The key of the answer that `message` waits for, if it waits for one."""
    match message:
        case SaveBegun(step=step):
            return ("opened", step)
        case ShardSaved(step=step):
            return ("committed", step)
        case AwaitGeneration():
            return ("generation", 0)
        case AskLatest() | CorruptionFound():
            return ("latest", 0)
        case _:
            return None


def _answers(message: Message) -> list[Key]:
    match message:
        case SaveOpened(step=step) | SaveRefused(step=step):
            return [("opened", step)]
        case CheckpointCommitted(step=step) | CheckpointFailed(step=step):
            return [("opened", step), ("committed", step)]
        case Generation():
            return [("generation", 0)]
        case Latest():
            return [("latest", 0)]
        case _:
            return []


class Outbox:
    """Durable messages in order, each kept until it is sent; samples and spans in rings.

    A full ring drops, and counts, its oldest.

    A message that waits for an answer is kept until the answer comes, and said again on a new connection: an agent
    that was killed between reading and acting then hears it twice, never not at all. At most `MAX_DURABLE` messages
    are kept; beyond, the oldest goes and is counted in `lost`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._durable: deque[Message] = deque()
        self._unanswered: dict[Key, Message] = {}
        self._samples: deque[StepSample] = deque()
        self._spans: deque[Span] = deque()
        self._sending: Message | None = None
        self.dropped = 0
        self.dropped_spans = 0
        self.lost = 0

    def put(self, message: Message) -> None:
        """Queue a durable message behind the others."""
        with self._lock:
            if len(self._durable) >= MAX_DURABLE:
                self._durable.popleft()
                self.lost += 1
            self._durable.append(message)

    def sample(self, sample: StepSample) -> None:
        """Queue a step sample."""
        with self._lock:
            if len(self._samples) >= MAX_SAMPLES:
                self._samples.popleft()
                self.dropped += 1
            self._samples.append(sample)

    def span(self, span: Span) -> None:
        """Queue a span."""
        with self._lock:
            if len(self._spans) >= MAX_SPANS:
                self._spans.popleft()
                self.dropped_spans += 1
            self._spans.append(span)

    def take(self, *, samples: bool) -> Message | None:
        """The next message to send: durable ones first, then spans, then, where `samples` is set, a batch of those."""
        with self._lock:
            if self._durable:
                self._sending = self._durable.popleft()
            elif self._spans:
                self._sending = structs.replace(self._spans.popleft(), dropped=self.dropped_spans)
            elif samples and self._samples:
                count = min(MAX_BATCH, len(self._samples))
                self._sending = Samples(steps=[self._samples.popleft() for _ in range(count)], dropped=self.dropped)
            else:
                self._sending = None
            return self._sending

    def sent(self) -> None:
        """The message last taken is on its way; one that expects an answer stays known."""
        with self._lock:
            if self._sending is not None and (key := _expects(self._sending)):
                self._unanswered[key] = self._sending
            self._sending = None

    def answered(self, message: Message) -> None:
        """An answer came: forget the questions it settles."""
        keys = _answers(message)
        if not keys:
            return
        with self._lock:
            for key in keys:
                self._unanswered.pop(key, None)
            self._durable = deque(queued for queued in self._durable if _expects(queued) not in keys)

    def forget_saves(self) -> None:
        """A generation ended: its saves cannot commit any more, no answer is waited for."""
        with self._lock:
            self._unanswered = {key: kept for key, kept in self._unanswered.items() if key[0] == "latest"}
            self._durable = deque(queued for queued in self._durable if not isinstance(queued, SaveBegun | ShardSaved))

    def reconnected(self) -> None:
        """A new connection: what was cut off or never answered is first in the queue again."""
        with self._lock:
            again = list(self._unanswered.values())
            self._unanswered.clear()
            if isinstance(self._sending, Samples):
                self.dropped += len(self._sending.steps)
            elif isinstance(self._sending, Span):
                self.dropped_spans += 1
            elif self._sending is not None:
                again.append(self._sending)
            self._sending = None
            self._durable.extendleft(reversed(again))

    @property
    def empty(self) -> bool:
        """Whether nothing waits to be sent."""
        return not (self._durable or self._samples or self._spans) and self._sending is None
