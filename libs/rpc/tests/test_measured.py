from __future__ import annotations

import asyncio
import time

import pytest
from prometheus_client import REGISTRY

from distroml.events import Context, NewEvent
from distroml.eventstore import Append, Commit, EventStore, Fenced, Guard, WrongExpectedVersion
from distroml.eventstore.memory import open_event_store
from distroml.rpc.leases import lease_held
from distroml.rpc.measured import MeasuredEventStore
from distroml.statestore.memory import MemoryDatabase


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"distroml_{name}", labels) or 0.0


def a_commit(version: int, *guards: Guard, ago_s: float = 0.0) -> Commit:
    at_ms = int((time.time() - ago_s) * 1000)
    context = Context(deployment="dep-1", project="p", actor="a", causation_id="c", correlation_id="r", time_ms=at_ms)
    event = NewEvent(id=f"event-{version}", type="test.Happened", schema=1, public=False, data=b"{}")
    return Commit(context=context, appends=(Append("test/one", version, (event,)),), guards=guards)


async def test_commits_are_timed_by_outcome():
    store: EventStore = MeasuredEventStore(open_event_store(MemoryDatabase("dep-1")))
    before = {
        outcome: value("eventstore_commit_duration_seconds_count", outcome=outcome)
        for outcome in ("committed", "conflict", "fenced")
    }
    events = value("eventstore_events_total")
    await store.commit(a_commit(0))
    with pytest.raises(WrongExpectedVersion):
        await store.commit(a_commit(0))
    with pytest.raises(Fenced):
        await store.commit(a_commit(1, Guard("leases/x", revision=9)))
    for outcome, count in before.items():
        assert value("eventstore_commit_duration_seconds_count", outcome=outcome) == count + 1
    assert value("eventstore_events_total") == events + 1


async def test_a_reader_that_hangs_at_an_event_is_seen_to_lag():
    store: EventStore = MeasuredEventStore(open_event_store(MemoryDatabase("dep-1")))
    await store.commit(a_commit(0, ago_s=5))
    subscription = store.subscribe("test.reader")
    reader = aiter(subscription)
    recorded = await anext(reader)
    assert value("subscription_lag_seconds", durable="test.reader") >= 5
    await subscription.ack(recorded)
    waiting = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    assert value("subscription_lag_seconds", durable="test.reader") == 0
    await store.commit(a_commit(1))
    assert (await waiting).version == 2
    assert value("subscription_delivery_seconds_count", durable="test.reader") == 2
    await subscription.close()


def test_a_lease_is_held_as_long_as_its_work_lasts():
    with lease_held("leases/test"):
        assert value("lease_held", lease="leases/test") == 1
    assert REGISTRY.get_sample_value("distroml_lease_held", {"lease": "leases/test"}) == 0
