"""The worker's end of the link to its agent."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping

from distroml.runtime.link.client import AgentLink, Identity
from distroml.runtime.link.null import NullLink
from distroml.runtime.link.port import Link
from distroml.workerlink import environment

__all__ = ["AgentLink", "Identity", "Link", "NullLink", "open_link", "process_link"]

CLOSE_S = 2.0
_links: dict[int, Link] = {}


def open_link(environ: Mapping[str, str]) -> Link:
    """A started link to the agent that `environ` names, or a null link where it names none."""
    path = environ.get(environment.LINK_SOCKET)
    if not path:
        return NullLink()
    link = AgentLink(
        path,
        Identity(
            worker=environ[environment.WORKER],
            incarnation=int(environ.get(environment.INCARNATION, "1")),
            generation=int(environ.get(environment.GENERATION, "0")),
        ),
    )
    link.start()
    return link


def process_link() -> Link:
    """This process's one link, opened at the first call; a forked child opens its own."""
    pid = os.getpid()
    if pid not in _links:
        _links.clear()
        link = _links[pid] = open_link(os.environ)
        # What was said last, the reason of a failure above all, is still to be sent when the script ends.
        atexit.register(link.close, CLOSE_S)
    return _links[pid]
