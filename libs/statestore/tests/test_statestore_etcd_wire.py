"""The encoding of messages, compared with protobuf's own."""

from typing import Annotated

import pytest
from google.protobuf import descriptor_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from distroml.statestore.etcd.messages import Event, KeyValue, WatchResponse
from distroml.statestore.etcd.watch import _Place
from distroml.statestore.etcd.wire import Message, decode, encode


class UninterpretedOption(Message, frozen=True):
    """Some fields of protobuf's own message: every kind that we use, in another implementation's hands."""

    class NamePart(Message, frozen=True):
        name_part: Annotated[str | None, 1] = None
        is_extension: Annotated[bool | None, 2] = None

    name: Annotated[tuple[NamePart, ...], 2] = ()
    identifier_value: Annotated[str, 3] = ""
    positive_int_value: Annotated[int, 4] = 0
    negative_int_value: Annotated[int | None, 5] = None
    string_value: Annotated[bytes, 7] = b""


parts = st.builds(UninterpretedOption.NamePart, name_part=st.text(), is_extension=st.booleans())
options = st.builds(
    UninterpretedOption,
    name=st.lists(parts).map(tuple),
    identifier_value=st.text(),
    positive_int_value=st.integers(0, 2**63 - 1),
    negative_int_value=st.none() | st.integers(-(2**63), 2**63 - 1),
    string_value=st.binary(),
)


@given(options)
def test_protobuf_reads_what_we_write_and_we_what_it_writes(option):
    theirs = pb.UninterpretedOption.FromString(encode(option))
    assert [(part.name_part, part.is_extension) for part in theirs.name] == [
        (part.name_part, part.is_extension) for part in option.name
    ]
    assert theirs.identifier_value == option.identifier_value
    assert theirs.positive_int_value == option.positive_int_value
    assert theirs.HasField("negative_int_value") == (option.negative_int_value is not None)
    assert theirs.negative_int_value == (option.negative_int_value or 0)
    assert theirs.string_value == option.string_value
    assert decode(UninterpretedOption, theirs.SerializeToString()) == option


def test_unknown_fields_are_passed_over():
    theirs = pb.UninterpretedOption(double_value=1.5, aggregate_value="x", identifier_value="y")
    assert decode(UninterpretedOption, theirs.SerializeToString()) == UninterpretedOption(identifier_value="y")


@given(options, st.data())
def test_what_is_cut_off_is_no_message_or_a_shorter_one(option, data):
    whole = encode(option)
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    try:
        decode(UninterpretedOption, cut)
    except ValueError:
        return
    # Cut between two fields it is a message, for protobuf too.
    pb.UninterpretedOption.FromString(cut)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x1a\x05ab", "cut off"),
        (b"\x20", "cut off"),
        (b"\x20" + b"\xff" * 10, "64 bits"),
        (b"\x1c", "wire type"),
        (b"\x18\x01", "identifier_value has wire type 0"),
    ],
)
def test_what_is_no_message_is_an_error(data, why):
    with pytest.raises(ValueError, match=why):
        decode(UninterpretedOption, data)


def change(key, revision):
    return Event(kv=KeyValue(key=key.encode(), mod_revision=revision))


def keys(batches):
    return [[event.kv.key.decode() for event in batch] for batch in batches]


def test_a_revision_in_fragments_is_given_whole():
    place = _Place(after=1)
    first = WatchResponse(events=(change("a", 2), change("a", 3)), fragment=True)
    second = WatchResponse(events=(change("b", 3), change("c", 3)), fragment=True)
    third = WatchResponse(events=(change("d", 3), change("e", 4)))
    assert keys(place.take(first)) == [["a"]]
    assert place.after == 2
    assert keys(place.take(second)) == []
    assert place.after == 2
    assert keys(place.take(third)) == [["a", "b", "c", "d"], ["e"]]
    assert place.after == 4
