from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

import pytest

from distroml.api.common.v1 import replay_pb2 as pb
from distroml.api.common.v1.replay_pb2_grpc import ReplayServiceStub, add_ReplayServiceServicer_to_server
from distroml.events import Context, Decider
from distroml.eventstore import Commit, EventStore, Part
from distroml.eventstore.codec import DataclassCodec, JsonState
from distroml.eventstore.draft import Repository
from distroml.eventstore.handle import handle
from distroml.eventstore.memory import open_event_store
from distroml.rpc import RemoteError, connect
from distroml.rpc.replay import ReplayServicer, StreamKind
from libs.rpc.tests.conftest import TOKEN, Serve

NAME = "distroml.api.common.v1.ReplayService"


@dataclass(frozen=True, slots=True)
class Added:
    amount: int


@dataclass(frozen=True, slots=True)
class Sum:
    total: int = 0


def decide(state: Sum, command: int) -> Sequence[Added]:
    return (Added(command),)


def evolve(state: Sum, event: Added) -> Sum:
    return replace(state, total=state.total + event.amount)


CONTEXT = Context(deployment="dep-1", project="p", actor="a", causation_id="c", correlation_id="r", time_ms=1)


class Bench:
    def __init__(self, store: EventStore, stub: ReplayServiceStub) -> None:
        self.store, self.stub = store, stub
        self.sums = Repository(
            store, Decider(Sum(), decide, evolve), DataclassCodec({"sum.Added": (Added, 1)}), JsonState(Sum)
        )

    async def add(self, stream: str, amount: int) -> str:
        done = await handle(self.sums, stream, amount, context=CONTEXT)
        return str(done.outcome.position)

    async def at(self, **request: object) -> dict[str, int]:
        answer = await self.stub.StateAt(pb.StateAtRequest(**request))
        return {state.stream: json.loads(state.json)["total"] for state in answer.states}

    async def verify(self, **request: object) -> dict[str, pb.VerifyResponse]:
        return {one.stream: one async for one in self.stub.Verify(pb.VerifyRequest(**request))}


@pytest.fixture
async def bench(serve: Serve) -> AsyncIterator[Bench]:
    store = open_event_store(deployment="dep-1")
    bench = Bench(store, None)  # type: ignore[arg-type]
    servicer = ReplayServicer(
        store, [StreamKind("sum/job/", bench.sums), StreamKind("sum/pool/", bench.sums)], deployment="dep-1"
    )

    def prepare(service: object) -> None:
        service.add(add_ReplayServiceServicer_to_server, servicer, NAME)  # type: ignore[attr-defined]
        service.on_close(store.close)  # type: ignore[attr-defined]

    service = await serve(prepare)
    async with connect(service.endpoint, TOKEN) as channel:
        bench.stub = ReplayServiceStub(channel)
        yield bench


async def test_the_state_at_any_position(bench: Bench) -> None:
    first = await bench.add("sum/job/a", 1)
    second = await bench.add("sum/job/b", 10)
    await bench.add("sum/job/a", 2)
    await bench.add("sum/pool/default", 5)
    assert await bench.at() == {"sum/job/a": 3, "sum/job/b": 10, "sum/pool/default": 5}
    assert await bench.at(position=first) == {"sum/job/a": 1}
    assert await bench.at(position=second, job="a") == {"sum/job/a": 1}
    assert await bench.at(streams=["sum/job/b"]) == {"sum/job/b": 10}
    assert await bench.at(job="nobody") == {}


@pytest.mark.parametrize(
    ("request_", "reason", "text"),
    [
        ({"position": "yesterday"}, "InvalidArgument", "is no position"),
        ({"position": "other-log:1.0"}, "InvalidArgument", "belongs to log 'other-log'"),
        ({"streams": ["checkpoint/job/a"]}, "NoSuchStream", "sum/job/, sum/pool/"),
    ],
)
async def test_wrong_questions_are_answered_clearly(
    bench: Bench, request_: dict[str, object], reason: str, text: str
) -> None:
    await bench.add("sum/job/a", 1)
    with pytest.raises(RemoteError, match=text) as refused:
        await bench.at(**request_)
    assert refused.value.reason == reason


async def test_retired_streams_are_folded_verified_and_mended_too(bench: Bench) -> None:
    for amount in (1, 2):
        position = await bench.add("sum/job/a", amount)
    await bench.add("sum/job/b", 5)
    await bench.store.retire("sum/job/a", version=2)
    assert await bench.at(position=position) == {"sum/job/a": 3}
    assert (await bench.sums.load("sum/job/a")).state == Sum(3)
    sound = await bench.verify()
    assert {name: (one.version, len(one.differences)) for name, one in sound.items()} == {
        "sum/job/a": (2, 0),
        "sum/job/b": (1, 0),
    }
    await bench.store.commit(Commit(context=CONTEXT, parts=(Part("state/sum/job/b:state", b'{"total":77}'),)))
    await bench.store.retire("sum/job/b", version=1)
    [difference] = (await bench.verify())["sum/job/b"].differences
    assert (difference.path, difference.folded, difference.stored) == ("total", "5", "77")
    assert (await bench.verify(job="b", mend=True))["sum/job/b"].mended
    assert not (await bench.verify(job="b"))["sum/job/b"].differences
    # Decided on what was sealed, the stream goes on from there; on the parts alone, the log is not folded.
    await bench.store.retire("sum/job/b", version=1)
    await bench.add("sum/job/b", 2)
    assert (await bench.sums.load("sum/job/b")).state == Sum(7)
    assert await bench.store.retired() == ["sum/job/a"]


async def test_a_changed_state_is_found_named_and_mended(bench: Bench) -> None:
    await bench.add("sum/job/a", 1)
    await bench.add("sum/job/b", 2)
    sound = await bench.verify()
    assert sound.keys() == {"sum/job/a", "sum/job/b"}
    assert not any(answer.differences for answer in sound.values())
    [key] = [key for key in (await bench.store.parts("state/sum/job/a"))[0] if not key.endswith("@")]
    await bench.store.commit(Commit(context=CONTEXT, parts=(Part(key, b'{"total":77}'),)))
    found = await bench.verify()
    [difference] = found["sum/job/a"].differences
    assert (difference.path, difference.folded, difference.stored) == ("total", "1", "77")
    assert not found["sum/job/a"].mended
    assert not found["sum/job/b"].differences
    mended = await bench.verify(job="a", mend=True)
    assert mended["sum/job/a"].mended
    assert not (await bench.verify(streams=["sum/job/a"]))["sum/job/a"].differences
