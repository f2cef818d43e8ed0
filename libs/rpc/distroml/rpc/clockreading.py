"""Another machine's clock, read once: how far it is off ours, and when that is a trouble.

Nothing is decided by comparing clocks of two machines. But times of events, lines and steps stand side by side, S3
refuses what was signed 15 minutes away from its own time, and certificates have dates.
"""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

from distroml.objectstore import ObjectStoreRefused
from distroml.objectstore.location import http_of

APART_S: Final = 60.0
"""Clocks that are further apart than this are a trouble. A machine that asks NTP is off by less than a second."""

Now = Callable[[], float]
"""This machine's clock, Unix seconds."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Another machine's clock, read once: `ahead_s` of ours, negative behind, and right to within `unsure_s`."""

    ahead_s: float
    unsure_s: float

    @property
    def apart(self) -> bool:
        """Whether it is too far off for certain."""
        return abs(self.ahead_s) - self.unsure_s > APART_S


def read(said_s: float, before_s: float, after_s: float, *, step_s: float = 0.0) -> Reading:
    """A clock that said `said_s`, rounded down to `step_s`, somewhen between two times of ours."""
    middle_s, said_s = (before_s + after_s) / 2, said_s + step_s / 2
    return Reading(said_s - middle_s, abs(after_s - before_s) / 2 + step_s / 2)


def trouble(whose: str, reading: Reading) -> str | None:
    """What is wrong with a clock and what to do; None where nothing is."""
    if not reading.apart:
        return None
    minutes, seconds = divmod(round(abs(reading.ahead_s)), 60)
    return (
        f"the clock of {whose} is {minutes} min {seconds} s {'ahead of' if reading.ahead_s > 0 else 'behind'} this "
        "machine's: have both set by NTP (chrony or systemd-timesyncd); until then times of jobs, events and lines are "
        "off by that, and S3 refuses requests where it is 15 minutes"
    )


def of_http(
    url: str, context: ssl.SSLContext | None, now: Now = time.time, *, timeout_s: float = 2.0
) -> Reading | None:
    """The clock of a server that speaks HTTP, by the header `Date` (RFC 9110, whole seconds); None where it is silent.

    Blocks for `timeout_s` at most at each step of the connection.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = (
        http.client.HTTPSConnection(parts.hostname, parts.port, context=context, timeout=timeout_s)
        if parts.scheme == "https"
        else http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)
    )
    try:
        connection.connect()
        before_s = now()
        connection.request("GET", parts.path or "/")
        said = connection.getresponse().getheader("Date")
        after_s = now()
        return read(parsedate_to_datetime(said).timestamp(), before_s, after_s, step_s=1.0) if said else None
    except (OSError, http.client.HTTPException, ValueError):
        # Whether it serves is another question, which others ask.
        return None
    finally:
        connection.close()


def of_objects(location: str, now: Now = time.time) -> Reading | None:
    """The clock of the S3 server of a location, as `of_http`; None for a folder, and where nothing can be asked."""
    try:
        server = http_of(location) if location else None
    except (OSError, ValueError, ObjectStoreRefused):
        return None
    return of_http(*server, now) if server else None
