"""From the outbox to the log: what was committed once is published and sealed, in order, without a gap."""

from distroml.eventstore.relay.port import Outbox, OutboxEntry, OutboxTrimmed

__all__ = ["Outbox", "OutboxEntry", "OutboxTrimmed"]
