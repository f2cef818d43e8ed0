"""The event store whose commits are etcd transactions; needs the extra `stack`."""

from __future__ import annotations

from distroml.eventstore.etcd.archive import Archive
from distroml.eventstore.etcd.keys import Keys
from distroml.eventstore.etcd.outbox import EtcdOutbox
from distroml.eventstore.etcd.store import OUTBOX_COMMITS, EtcdEventStore, Reader
from distroml.eventstore.relay.cursors import Cursors
from distroml.eventstore.relay.port import Pages
from distroml.eventstore.relay.reader import LogReader
from distroml.eventstore.segments import SegmentLog
from distroml.statestore.etcd import EtcdStateStore

__all__ = ["OUTBOX_COMMITS", "Archive", "EtcdEventStore", "EtcdOutbox", "Keys", "Reader", "open_event_store"]


def open_event_store(
    state: EtcdStateStore, pages: Pages, segments: SegmentLog, archive: Archive, *, outbox_commits: int = OUTBOX_COMMITS
) -> EtcdEventStore:
    """The event store of the state store's deployment, on the same client.

    Args:
        state: keeps the cursors too; closed by its owner, after this store.
        pages: the log that the relay fills.
        segments: those that it seals.
        archive: where retired streams leave their states; in the store of objects that has the segments.
        outbox_commits: how many commits may wait for the relay.
    """
    log_id = state.deployment
    outbox = EtcdOutbox(state.client, Keys(log_id), log_id)
    reader = LogReader(log_id, outbox, pages, segments, Cursors(state))
    return EtcdEventStore(state.client, log_id, outbox, reader, archive, segments, outbox_commits=outbox_commits)
