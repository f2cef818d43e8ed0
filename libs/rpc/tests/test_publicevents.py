from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distroml.api.checkpoint.v1 import checkpoint_pb2
from distroml.api.rendezvous.v1 import rendezvous_pb2
from distroml.api.scheduler.v1 import events_pb2
from distroml.events import NewEvent, UnknownEvent
from distroml.rpc.conversion import ContractMismatch
from distroml.rpc.publicevents import (
    PACKAGES,
    PublicCodec,
    check_codec,
    decode_public,
    message_class,
    to_event,
    to_json,
)
from libs.rpc.tests.contract_samples import (
    CODEC,
    SAMPLES,
    SPEC,
    STEPS,
    Failed,
    Formed,
    Generation,
    GenerationFormed,
    Member,
    RetryPolicy,
    Spec,
    StepRecorded,
    Submitted,
    Validated,
    WorkerRange,
    recorded,
)


def test_every_event_survives_the_way_into_the_log_and_back() -> None:
    check_codec(CODEC, SAMPLES)


def test_a_class_without_a_sample_fails_the_check() -> None:
    with pytest.raises(AssertionError, match="no sample of Failed"):
        check_codec(CODEC, {cls: sample for cls, sample in SAMPLES.items() if cls is not Failed})


def test_nested_messages_and_maps_of_numbers() -> None:
    member = Member(worker="w", node="n", rank=0, local_rank=0, node_rank=0, local_world_size=2, address="127.0.0.1")
    formed = Formed(
        job="j", number=3, world_size=2, members=(member,), store_endpoint="h:1", mesh={"dp": 2}, at_ms=1, attempt=1
    )
    codec = PublicCodec[object](
        {"rendezvous.generation.GenerationFormed": (GenerationFormed, rendezvous_pb2.GenerationFormed, 1)}
    )
    check_codec(codec, {GenerationFormed: GenerationFormed(generation=formed)})


def test_absent_and_zero_are_told_apart() -> None:
    stored = CODEC.encode(SAMPLES[Submitted], id="e")
    back = CODEC.decode(stored.type, stored.schema, stored.data)
    assert isinstance(back, Submitted)
    assert back.spec.retry == RetryPolicy(max_failures=0, max_preemptions=None)
    assert back.spec.checkpoint.keep is None


def test_an_unset_enum_is_none() -> None:
    event = Failed(at_ms=1, category=None, reason="", message="")
    stored = CODEC.encode(event, id="e")
    assert events_pb2.JobFailed.FromString(stored.data).category == 0
    assert CODEC.decode(stored.type, 1, stored.data) == event


def test_an_enum_value_of_a_newer_release_is_refused() -> None:
    data = events_pb2.JobFailed(category=99).SerializeToString()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no value 99"):
        CODEC.decode("scheduler.job.Failed", 1, data)


def test_encoding_is_the_same_bytes_every_time() -> None:
    one = Submitted(job="j", spec=SPEC, at_ms=1)
    env = {name: str(index) for index, name in enumerate("qwertyuiop")}
    for other in (env, dict(reversed(env.items()))):
        spec = Spec(name="x", project="p", command=(), env=other, workers=WorkerRange(min=1, max=1))
        assert (
            CODEC.encode(Submitted(job="j", spec=spec, at_ms=1), id="e").data
            == CODEC.encode(Submitted(job="j", spec=spec, at_ms=1), id="f").data
        )
    assert CODEC.encode(one, id="e").id == "e"


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])), st.integers(-(2**63), 2**63 - 1), st.floats())
def test_every_value_of_the_contracts_types_comes_back(text: str, number: int, loss: float) -> None:
    event = StepRecorded(
        at_ms=number,
        generation=Generation(number),
        step=0,
        sample_from=0,
        sample_to=0,
        epoch=0,
        loss=loss,
        fingerprint=text,
        why=text,
    )
    stored = STEPS.encode(event, id="e")
    back = STEPS.decode(stored.type, stored.schema, stored.data)
    assert back == event or (math.isnan(loss) and math.isnan(back.loss))


@pytest.mark.parametrize("event", [Validated(at_ms=2**63), Validated(at_ms="soon")], ids=["range", "type"])  # type: ignore[arg-type]
def test_a_value_that_the_contract_has_no_room_for_is_a_value_error(event: Validated) -> None:
    with pytest.raises(ValueError, match=r"scheduler\.job\.Validated cannot be written"):
        CODEC.encode(event, id="e")


def test_an_unknown_event_stops_a_fold() -> None:
    for type_, schema in (
        ("scheduler.job.Teleported", 1),
        ("scheduler.job.Validated", 2),
        ("scheduler.job.Validated", 0),
    ):
        with pytest.raises(UnknownEvent):
            CODEC.decode(type_, schema, b"")


def test_damaged_bytes_are_named() -> None:
    with pytest.raises(ValueError, match="damaged"):
        CODEC.decode("scheduler.job.Validated", 1, b"\xff\xff")


def test_an_upcaster_gives_old_bytes_todays_meaning() -> None:
    codec = PublicCodec[object](
        {"scheduler.job.Validated": (Validated, events_pb2.JobValidated, 3)},
        {
            ("scheduler.job.Validated", 1): lambda old: Validated(at_ms=old.at_ms * 1000),
            ("scheduler.job.Validated", 2): lambda old: Validated(at_ms=old.at_ms + 1),
        },
    )
    data = CODEC.encode(Validated(at_ms=7), id="e").data
    assert [codec.decode("scheduler.job.Validated", schema, data) for schema in (1, 2, 3)] == [
        Validated(at_ms=7001),
        Validated(at_ms=8),
        Validated(at_ms=7),
    ]
    with pytest.raises(ValueError, match="no upcaster of \\[1\\]"):
        PublicCodec[object]({"scheduler.job.Validated": (Validated, events_pb2.JobValidated, 2)})


def test_a_stored_name_must_lead_to_its_message() -> None:
    with pytest.raises(ContractMismatch, match=r"leads to distroml\.api\.scheduler\.v1\.JobQueued"):
        PublicCodec[object]({"scheduler.job.Queued": (Validated, events_pb2.JobValidated, 1)})


@pytest.mark.parametrize(
    ("type_", "message"),
    [
        ("scheduler.job.Failed", events_pb2.JobFailed),
        ("scheduler.node.Lost", events_pb2.NodeLost),
        ("rendezvous.worker.WorkerExited", rendezvous_pb2.WorkerExited),
        ("rendezvous.generation.GenerationFormed", rendezvous_pb2.GenerationFormed),
        ("checkpoint.Committed", checkpoint_pb2.Committed),
    ],
)
def test_stored_names_lead_into_the_contract(type_: str, message: type) -> None:
    assert message_class(type_) is message


@pytest.mark.parametrize("type_", ["", "scheduler", "telemetry.Sample", "scheduler.job.Nothing", "a.b.c.d"])
def test_a_name_outside_the_contract_is_unknown(type_: str) -> None:
    with pytest.raises(UnknownEvent):
        decode_public(type_, 1, b"")


def test_every_service_with_public_events_is_named() -> None:
    assert set(PACKAGES) == {"scheduler", "rendezvous", "checkpoint"}


def test_readers_get_json_with_the_contracts_names() -> None:
    one = recorded(CODEC.encode(SAMPLES[Failed], id="evt-1"))
    assert '"at_ms": "8"' in to_json(one)
    assert "FAILURE_CATEGORY_OUT_OF_MEMORY" in to_json(one)
    event = to_event(one)
    assert (event.id, event.position, event.time.ToMilliseconds()) == ("evt-1", "dep-1:4.0", 1_700_000_000_123)
    assert event.json == to_json(one)


def test_private_and_unknown_events_pass_without_their_body() -> None:
    private = recorded(NewEvent(id="e", type="scheduler.job.Note", schema=1, public=False, data=b'{"secret": 1}'))
    assert (to_event(private).data, to_event(private).json) == (b"", "")
    unknown = recorded(NewEvent(id="e", type="scheduler.job.Newer", schema=1, public=True, data=b"abc"))
    assert (to_event(unknown).data, to_event(unknown).json) == (b"abc", "")
