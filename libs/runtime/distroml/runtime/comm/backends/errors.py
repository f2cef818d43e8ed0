"""Errors of back ends.

BackEndError
└── BackEndUnavailable       the back end that was asked for cannot be used here
dist.DistBackendError        torch's own: what `is_communication_error` knows
└── CommunicationFailed      talking to other ranks failed, or took longer than it may
"""

from __future__ import annotations

import torch.distributed as dist


class BackEndError(Exception):
    """A back end cannot do what it was asked for; the text says why and what to do."""


class BackEndUnavailable(BackEndError):
    """This machine, this process or this device cannot use the back end."""


class CommunicationFailed(dist.DistBackendError):
    """A collective or message failed, or a rank did not come to it in time: the world is over for this process."""
