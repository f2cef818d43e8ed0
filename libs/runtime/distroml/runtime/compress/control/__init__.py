"""The adaptive controller: which scheme each bucket uses, decided alike on every rank from shared measurements."""

from distroml.runtime.compress.control.estimating import PROBE_BYTES, PROBE_EVERY, probe_due
from distroml.runtime.compress.control.model import (
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
from distroml.runtime.compress.control.policy import Gain, begun, decide, first, gain, link_of
from distroml.runtime.compress.control.replay import Replay

__all__ = [
    "LADDER",
    "PROBE_BYTES",
    "PROBE_EVERY",
    "Bucket",
    "Change",
    "Gain",
    "Link",
    "Measured",
    "Offer",
    "Probe",
    "Replay",
    "Seen",
    "Setting",
    "State",
    "begun",
    "decide",
    "first",
    "gain",
    "link_of",
    "probe_due",
]
