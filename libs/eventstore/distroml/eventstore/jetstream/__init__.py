"""The recent part of the log in NATS JetStream, by `nats-py` (the extra `stack`)."""

from distroml.eventstore.jetstream.connection import MIN_VERSION, NatsConnection, NatsSettings
from distroml.eventstore.jetstream.reader import JetStreamReader
from distroml.eventstore.jetstream.stream import JetStreamLog

__all__ = ["MIN_VERSION", "JetStreamLog", "JetStreamReader", "NatsConnection", "NatsSettings"]
