"""Channels, interceptors, deadlines, errors and the life of a server.

The calling side needs gRPC only; what a server needs beyond (`Service`, `launch`) is imported when it is first used.
"""

from typing import TYPE_CHECKING

from distroml.rpc import errors
from distroml.rpc.callers import Caller, caller, calling, system_caller, time_left_s
from distroml.rpc.channel import MAX_MESSAGE_BYTES, connect
from distroml.rpc.errors import CallError, RemoteError
from distroml.rpc.settings import FORMAT, ServiceSettings, SettingsError

if TYPE_CHECKING:
    from distroml.rpc.process import launch
    from distroml.rpc.service import PortTaken, Service
    from distroml.rpc.stores import Stores, open_stores
    from distroml.rpc.tasks import Backoff

__all__ = [
    "FORMAT",
    "MAX_MESSAGE_BYTES",
    "Backoff",
    "CallError",
    "Caller",
    "PortTaken",
    "RemoteError",
    "Service",
    "ServiceSettings",
    "SettingsError",
    "Stores",
    "caller",
    "calling",
    "connect",
    "errors",
    "launch",
    "open_stores",
    "system_caller",
    "time_left_s",
]

_LAZY = {
    "Backoff": "distroml.rpc.tasks",
    "PortTaken": "distroml.rpc.service",
    "Service": "distroml.rpc.service",
    "Stores": "distroml.rpc.stores",
    "launch": "distroml.rpc.process",
    "open_stores": "distroml.rpc.stores",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
