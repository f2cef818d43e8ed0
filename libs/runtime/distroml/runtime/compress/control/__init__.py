"""The adaptive controller: which scheme each bucket uses, decided alike on every rank from shared measurements."""

from distroml.runtime.compress.control.estimating import PROBE_BYTES, PROBE_EVERY, probe_bytes
from distroml.runtime.compress.control.guarding import sampled_bucket
from distroml.runtime.compress.control.model import (
    NONE,
    Bucket,
    Change,
    Link,
    Measured,
    Offer,
    Probe,
    Seen,
    Setting,
    State,
)
from distroml.runtime.compress.control.penalties import LADDER
from distroml.runtime.compress.control.policy import TOLD, Gain, begun, decide, first, gain, link_of, with_changes
from distroml.runtime.compress.control.replay import Record, Replay
from distroml.runtime.compress.control.resting import looks, passed, times

__all__ = [
    "LADDER",
    "NONE",
    "PROBE_BYTES",
    "PROBE_EVERY",
    "TOLD",
    "Bucket",
    "Change",
    "Gain",
    "Link",
    "Measured",
    "Offer",
    "Probe",
    "Record",
    "Replay",
    "Seen",
    "Setting",
    "State",
    "begun",
    "decide",
    "first",
    "gain",
    "link_of",
    "looks",
    "passed",
    "probe_bytes",
    "sampled_bucket",
    "times",
    "with_changes",
]
