"""What each owner of streams writes, and what it says of it: events that readers know, and states that follow."""

from __future__ import annotations

import json

import pytest

from distroml.api.common.v1 import replay_pb2 as pb
from distroml.api.common.v1.replay_pb2_grpc import ReplayServiceStub
from distroml.rpc.publicevents import decode_public
from tests.contract.calls import fields_of, refused
from tests.contract.golden import WRITERS
from tests.contract.stories import STORIES
from tests.contract.targets import OWNERS, Running


@pytest.fixture(params=OWNERS)
def named(request: pytest.FixtureRequest) -> str:
    return request.param


async def test_what_a_jobs_life_writes_can_be_read_by_the_contract_and_folds_to_its_state(service: Running) -> None:
    stream = f"{service.name}/job/{await STORIES[service.name](service)}"
    events = await service.written(stream)
    codec = WRITERS[service.name]
    public = [one for one in events if one.public]
    assert public
    for one in public:
        decode_public(one.type, one.schema, one.data)
        again = codec.encode(codec.decode(one.type, one.schema, one.data), id=one.id)
        assert (again.type, again.schema, again.data) == (one.type, one.schema, one.data)
        assert one.context.deployment == service.deployment
        assert one.context.correlation_id
    assert [one.version for one in events] == list(range(1, len(events) + 1))
    assert [one.position for one in events] == sorted(one.position for one in events)

    async with service.channel() as channel:
        stub = ReplayServiceStub(channel)
        verified = {one.stream: one async for one in stub.Verify(pb.VerifyRequest())}
        assert verified[stream].events == verified[stream].version == len(events)
        assert [list(one.differences) for one in verified.values()] == [[]] * len(verified)

        [now] = (await stub.StateAt(pb.StateAtRequest(streams=[stream]))).states
        assert (now.stream, now.version) == (stream, len(events))
        first = events[0].position
        past = await stub.StateAt(pb.StateAtRequest(job=stream.rpartition("/")[2], position=str(first)))
        assert past.position == str(first)
        [then] = [one for one in past.states if one.stream == stream]
        assert then.version == sum(one.position <= first for one in events)
        assert json.loads(then.json) != json.loads(now.json)
        assert not (await stub.StateAt(pb.StateAtRequest(job="nobody"))).states

        with refused("INVALID_ARGUMENT", "InvalidArgument") as garbage:
            await stub.StateAt(pb.StateAtRequest(position="yesterday"))
        with refused("INVALID_ARGUMENT", "InvalidArgument") as foreign:
            await stub.StateAt(pb.StateAtRequest(position="another-log:1.0"))
        assert fields_of(garbage) == fields_of(foreign) == {"position"}
        with refused("NOT_FOUND", "NoSuchStream"):
            await stub.StateAt(pb.StateAtRequest(streams=["nobody/job/x"]))
        with refused("NOT_FOUND", "NoSuchStream"):
            [one async for one in stub.Verify(pb.VerifyRequest(streams=["nobody/job/x"]))]
