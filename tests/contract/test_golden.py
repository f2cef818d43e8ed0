"""Readers go on understanding the bytes they rely on, and writers go on writing them."""

from __future__ import annotations

import json

import pytest

from tests.contract.golden import READERS, WRITERS, WRITTEN, Golden, make, read
from tests.recorded import differences

PAIRS = [(reader, writer) for reader, of in READERS.items() for writer in of.writers]
GOLDEN = [(reader, writer, one) for reader, writer in PAIRS for one in read(reader, writer)]
IDS = [f"{reader}-{one.type}-{one.schema}" for reader, _, one in GOLDEN]


@pytest.mark.parametrize(("reader", "writer", "golden"), GOLDEN, ids=IDS)
def test_a_reader_understands_what_it_understood(reader: str, writer: str, golden: Golden) -> None:
    means = READERS[reader].means(golden.type, golden.schema, golden.data)
    changed = list(differences(golden.means, json.loads(json.dumps(means))))
    assert not changed, (
        f"{reader} reads {golden.type} of {writer} otherwise than it did: {changed}. These bytes are in logs for good: "
        "mend the reader"
    )


@pytest.mark.parametrize(("reader", "writer", "golden"), GOLDEN, ids=IDS)
def test_a_writer_writes_what_its_readers_rely_on(reader: str, writer: str, golden: Golden) -> None:
    codec = WRITERS[writer]
    again = codec.encode(codec.decode(golden.type, golden.schema, golden.data), id="evt-1")
    assert (again.type, again.schema, again.data) == (golden.type, golden.schema, golden.data), (
        f"{writer} writes {golden.type} otherwise than {reader} reads it. Readers read by the published message and "
        "know no upcasters: write a new event beside the old one, or teach every reader first"
    )


@pytest.mark.parametrize(("reader", "writer"), PAIRS)
def test_a_reader_has_a_golden_event_of_all_that_it_understands(reader: str, writer: str) -> None:
    have = {one.type for one in read(reader, writer)}
    assert have <= WRITTEN[writer], f"{writer} no longer writes what {reader} relies on"
    missing = [type_ for type_ in sorted(WRITTEN[writer] - have) if make(reader, writer, type_) is not None]
    assert not missing, f"{reader} reads {missing} of {writer}: `python -m tests.contract.golden` adds them"
