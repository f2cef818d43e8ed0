"""Whether a cable is as slow as it was set: what one message and a long stream take between two hosts."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from links.namespaces import Host

_MESSAGE_BYTES = 128 << 10
_MESSAGES = 7
_BULK_S = 1.0
_WARM_BYTES = 16 << 10
# At 1000 Mbit/s a message takes a millisecond, of which the machine's own haste is a part.
_OFF = {1000: 0.3}
_OFF_DEFAULT = 0.2


class CableOff(RuntimeError):
    """A message did not take the time that the set rate means."""


@dataclass(frozen=True, slots=True)
class Cable:
    """What was measured of one at `mbit` Mbit/s.

    Attributes:
        mbit: as it was set.
        message: what a message of 128 KB takes, in its nominal times; the median of several.
        bulk_mbit: the rate of a long stream.
    """

    mbit: float
    message: float
    bulk_mbit: float

    def __str__(self) -> str:
        return (
            f"{self.mbit:g} Mbit/s: 128 KB take {self.message:.2f} of their nominal time, "
            f"a long stream has {self.bulk_mbit:.3g} Mbit/s ({self.bulk_mbit / self.mbit:.2f} of nominal)"
        )


def check(hosts: Sequence[Host], mbit: float) -> Cable:
    """Set the first two hosts' cables to `mbit` Mbit/s and measure from the one to the other.

    Raises:
        CableOff: 128 KB take more or less than their nominal time by over 20 % (30 % at 1000 Mbit/s).
    """
    source, sink = hosts[:2]
    for host in hosts:
        host.limit(mbit)
    words = [sys.executable, str(Path(__file__).with_name("stream.py"))]
    listening = subprocess.Popen(sink.command([*words, "sink", sink.address]), stdout=subprocess.PIPE, text=True)
    try:
        assert listening.stdout is not None
        listening.stdout.readline()
        sizes = [_WARM_BYTES] * 3 + [_MESSAGE_BYTES] * _MESSAGES
        bulk_bytes = max(_MESSAGE_BYTES * 4, int(mbit * 1e6 / 8 * _BULK_S))
        asked = [*words, "source", sink.address, *map(str, [*sizes, bulk_bytes])]
        timeout_s = 30 + 30 * bulk_bytes * 8 / mbit / 1e6
        done = subprocess.run(source.command(asked), capture_output=True, text=True, timeout=timeout_s, check=True)
    finally:
        listening.kill()
        listening.wait(10)
    seconds = [float(word) for word in done.stdout.split()]
    nominal_s = _MESSAGE_BYTES * 8 / mbit / 1e6
    messages = seconds[3:-1]
    found = Cable(mbit, statistics.median(messages) / nominal_s, bulk_bytes * 8 / 1e6 / seconds[-1])
    off = _OFF.get(int(mbit), _OFF_DEFAULT)
    if abs(found.message - 1) > off:
        raise CableOff(
            f"{found}; more than {off:.0%} off: an idle machine is needed, or another burst size in links/namespaces.py"
        )
    return found
