"""What is done to many lines at once comes to what is done to each: words, levels, traces, documents."""

import json

from hypothesis import example, given
from hypothesis import strategies as st

from distroml.logstore import Block, Line, ids_of, level_of
from distroml.logstore.elastic.document import decode, encode
from distroml.logstore.words import joined, words

LINES = st.text() | st.text(st.characters(max_codepoint=127)) | st.text("aB_9 .\x00\x1c\x85", min_size=90, max_size=230)


@given(LINES)
@example("torch.cuda.OutOfMemoryError: step_120 é")
@example("x" * 100 + "-" + "y" * 101)
def test_joined_words_are_the_words(text: str) -> None:
    assert joined(text) == " ".join(words(text))


SAYING = st.sampled_from(
    ["INFO step 3", '{"log.level": "error"}', "level=warn", "KeyError: 'x'", "x.py:1: UserWarning: old", "a WARN\r",
     "Traceback (most recent call last):", f"trace_id={'a1' * 16} span_id={'b2' * 8}", f"TRACEID={'c3' * 16}"]
)  # fmt: skip
# What is no text at all stands in them, and whatever JSON needs escaped.
WRITTEN = st.binary(max_size=40) | LINES.map(str.encode) | SAYING.map(str.encode) | st.just(b'%b "\\ \x1b[0m \t%%')


@given(st.lists(WRITTEN, min_size=1, max_size=6), st.sampled_from(["", "d4" * 16]))
def test_a_block_comes_to_its_lines_and_to_their_documents(parts: list[bytes], trace: str) -> None:
    data = b"".join(part + b"\n" for part in parts)
    block = Block(
        job="job-%d", worker='w"1', incarnation=2, stream="stdout", rank=-1, generation=4, attempt=5,
        at_ms=1_790_000_000_000, trace_id=trace, offset=70, data=data,
    )  # fmt: skip
    raw = data.split(b"\n")[:-1]
    texts = [part.decode(errors="replace").removesuffix("\r") for part in raw]
    offsets = [70 + sum(len(part) + 1 for part in raw[:at]) for at in range(len(raw))]
    found = block.lines()
    assert (len(found), block.count) == (len(raw), len(raw))
    for one, text, offset in zip(found, texts, offsets, strict=True):
        own, span = ids_of(text)
        assert one == Line(
            job="job-%d", worker='w"1', incarnation=2, stream="stdout", rank=-1, generation=4, attempt=5,
            at_ms=1_790_000_000_000, offset=offset, text=text, level=level_of(text), trace_id=own or trace,
            span_id=span,
        )  # fmt: skip
    rows = [json.loads(row) for row in encode(block, "host-%s").removesuffix(b"\n").split(b"\n")]
    for one, create, source in zip(found, rows[::2], rows[1::2], strict=True):
        assert create == {"create": {"_id": one.id}}
        assert (source["event.id"], source["host.name"]) == (one.id, "host-%s")
        assert source["distroml"]["words"].split() == joined(one.text).split()
        assert decode(source) == one
