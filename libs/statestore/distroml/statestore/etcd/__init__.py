"""The state store on etcd >= 3.5; needs the extra `stack`."""

from __future__ import annotations

from distroml.statestore.etcd.client import EtcdClient
from distroml.statestore.etcd.settings import EtcdSettings
from distroml.statestore.etcd.store import EtcdStateStore

__all__ = ["EtcdClient", "EtcdSettings", "EtcdStateStore", "open_state_store"]


def open_state_store(client: EtcdClient | EtcdSettings, deployment: str) -> EtcdStateStore:
    """The state store of `deployment`; give it the event store's client to share connections.

    Nothing is connected yet: the first call says whether etcd can be reached and is one we work with.
    """
    return EtcdStateStore(client if isinstance(client, EtcdClient) else EtcdClient(client), deployment)
