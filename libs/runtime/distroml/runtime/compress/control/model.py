"""What the controller knows, is told and says: small values that JSON can hold, alike on every rank."""

from __future__ import annotations

from dataclasses import dataclass

NONE = "none"


@dataclass(frozen=True, slots=True)
class Link:
    """What an exchange costs on the wire: `rounds * latency_s + sent_bytes * s_per_byte`."""

    latency_s: float
    s_per_byte: float


@dataclass(frozen=True, slots=True)
class Offer:
    """A scheme that a bucket may use, and what one exchange with it takes.

    Attributes:
        scheme: as a user writes it.
        sent_bytes: what one rank sends.
        rounds: messages that wait for one another.
        codec_s: of a processor, encoding and decoding, as they were tried on this machine.
    """

    scheme: str
    sent_bytes: int
    rounds: int = 1
    codec_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Bucket:
    """One buffer of the layout.

    Attributes:
        numel: its elements.
        ready: share of a step's computing after which its gradients are there, 0 to 1.
        offers: what may be chosen; "none" is among them.
    """

    numel: int
    ready: float
    offers: tuple[Offer, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """What is chosen from, the same within a generation.

    Attributes:
        buckets: in the order in which they are exchanged.
        codec_slows: share of the codecs' time that computing loses: 1 where they have no core of their own.
        lead: steps from the one that was measured to the first that a change can hold for.
    """

    buckets: tuple[Bucket, ...]
    codec_slows: float = 1.0
    lead: int = 2

    @property
    def largest_bytes(self) -> int:
        """Of the largest bucket, as it is."""
        return max((4 * bucket.numel for bucket in self.buckets), default=0)


@dataclass(frozen=True, slots=True)
class Seen:
    """One bucket's exchange in one step, the same numbers on every rank.

    Attributes:
        wire_s: from handing in its messages to their answers, codecs left out; 0 where it was not timed.
        exposed_s: for which computing waited.
        residual_norm, gradient_norm: in the same units.
        cosine: of what came out to the dense sum, on a sampled slice; None where it was not sampled.
        coded_s: of a processor, encoding and decoding; 0 where that is not known.
        latency_s: that a message of no size took; 0 where there was none.
    """

    wire_s: float
    exposed_s: float
    residual_norm: float = 0.0
    gradient_norm: float = 0.0
    cosine: float | None = None
    coded_s: float = 0.0
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Probe:
    """A dense exchange of `sent_bytes` in one round, on the links that gradients travel."""

    sent_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Measured:
    """A step as all ranks saw it together; `probe` where one was made in it."""

    step: int
    step_s: float
    loss: float
    buckets: tuple[Seen, ...]
    probe: Probe | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """Another scheme of a bucket, from step `from_step` on. `reason` is a constant, `why` says it in words."""

    bucket: int
    from_scheme: str
    to_scheme: str
    reason: str
    why: str
    from_step: int


@dataclass(frozen=True, slots=True)
class Watched:
    """What is remembered of one bucket.

    Attributes:
        scheme: that holds from `State.from_step` on.
        ratio: residual over gradient, mean of the `ratio_n` steps of the running window.
        ratio_before: mean of the window before; 0 for none.
        rises: windows in a row in which the mean rose.
        cosine: mean of the last `cosine_n` samples since the scheme was chosen, smoothed; all of them are above what
            its scheme's direction is lost below, or all are below.
        ceiling: no scheme above this rung of the ladder before step `until`; -1 where all are allowed.
        trips: how often a guard has stepped it back.
    """

    scheme: str
    ratio: float = 0.0
    ratio_n: int = 0
    ratio_before: float = 0.0
    rises: int = 0
    cosine: float = 1.0
    cosine_n: int = 0
    ceiling: int = -1
    until: int = 0
    trips: int = 0


@dataclass(frozen=True, slots=True)
class Astray:
    """A scheme whose direction was lost in each of `buckets`, as the last samples of it said one after the other."""

    scheme: str
    buckets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Course:
    """The loss so far, smoothed quickly and slowly, its scatter, and for how many steps it was too high."""

    fast: float = 0.0
    slow: float = 0.0
    best: float = 0.0
    scatter: float = 0.0
    n: int = 0
    high: int = 0


@dataclass(frozen=True, slots=True)
class Refuted:
    """Lossier schemes than `schemes` were no faster on a link of `s_per_byte`, so many `times`.

    They are not tried again before step `until`.
    """

    schemes: tuple[str, ...]
    s_per_byte: float
    until: int
    times: int


@dataclass(frozen=True, slots=True)
class Beaten:
    """Schemes that were slower to a loss than those that hold, as steps have shown on a link of `s_per_byte`."""

    schemes: tuple[str, ...]
    s_per_byte: float


@dataclass(frozen=True, slots=True)
class State:
    """All that the controller carries from one step to the next; goes into checkpoints as it is.

    Attributes:
        step: the last one that was measured.
        from_step: from which `buckets`' schemes hold.
        link: the estimate, mean of `link_n` samples of the same regime.
        latency_n: samples of its latency, as small messages within steps have it.
        doubt: samples in a row that contradict it, above 0 for a slower link; `doubt_log` is the sum of their logs.
        quelled: doubts that came to nothing since the link was last another.
        coding: what codecs take within steps over what they took when they were tried, mean of `coding_n` steps.
        compute_s: a step without communication, mean of `compute_n` samples.
        step_s: since the last change, mean of `step_n` steps.
        step_before_s: before the last change, where that was for speed and has yet to show it; 0 otherwise.
        refuted: the last such change that did not.
        beaten: what the last such change that did was changed from, until the next change.
        astray: schemes that hold, and whose last sample said that their direction is lost.
        left, left_at: the schemes that the last choice gave up, and the step after which it did.
        returns: choices lately that went back to what the one before gave up.
    """

    buckets: tuple[Watched, ...]
    link: Link
    step: int = 0
    from_step: int = 1
    link_n: int = 1
    doubt: int = 0
    doubt_log: float = 0.0
    quelled: int = 0
    compute_s: float = 0.0
    compute_n: int = 0
    step_s: float = 0.0
    step_n: int = 0
    step_before_s: float = 0.0
    refuted: Refuted | None = None
    course: Course = Course()
    left: tuple[str, ...] = ()
    left_at: int = 0
    returns: int = 0
    latency_n: int = 0
    coding: float = 1.0
    coding_n: int = 0
    beaten: Beaten | None = None
    astray: tuple[Astray, ...] = ()

    @property
    def schemes(self) -> tuple[str, ...]:
        """The buckets' schemes, as they hold from `from_step` on."""
        return tuple(bucket.scheme for bucket in self.buckets)
