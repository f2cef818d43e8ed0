"""Every server of the stack by name, in the order in which they start."""

from __future__ import annotations

import importlib

from deploy.stack.server import Server, StackError

# Name -> module and class; imported on use.
_SERVERS = {
    "etcd": "deploy.stack.etcd:Etcd",
    "nats": "deploy.stack.nats:Nats",
    # A second S3, to prove that it is S3 we use; where both run, services are told of the one below it here.
    "versitygw": "deploy.stack.versitygw:Versitygw",
    "minio": "deploy.stack.minio:Minio",
    "jaeger": "deploy.stack.jaeger:Jaeger",
    "postgres": "deploy.stack.postgres:Postgres",
    "prometheus": "deploy.stack.prometheus:Prometheus",
    "elasticsearch": "deploy.stack.elasticsearch:Elasticsearch",
}


ALL = ", ".join(_SERVERS)
SECOND = frozenset({"versitygw"})
"""Servers that only their name brings up: another of their kind is there."""


def names() -> tuple[str, ...]:
    """What there is."""
    return tuple(_SERVERS)


def server(name: str) -> Server:
    """The server of this name; raises `StackError`."""
    if name not in _SERVERS:
        raise StackError(f"there is no server {name!r} in the stack; there are {ALL}")
    module, _, factory = _SERVERS[name].partition(":")
    return getattr(importlib.import_module(module), factory)()
