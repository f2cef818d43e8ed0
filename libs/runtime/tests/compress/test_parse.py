"""Names of schemes: read, written, refused."""

import subprocess
import sys

import hypothesis.strategies as st
import pytest
from hypothesis import given

from distroml.runtime.compress import Spec, UnknownScheme, parse_scheme, parse_spec

NAMES = [
    "none",
    "bf16",
    "fp16",
    "int8",
    "int4",
    "sign",
    "topk:0.01",
    "topk:0.001+int8",
    "topk:0.3+bf16",
    "randomk:0.05",
    "randomk:1e-05+bf16",
    "randomk:0.1+int8",
    "powersgd:1",
    "powersgd:32+int8",
    "powersgd:4+bf16",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_come_back(name: str) -> None:
    assert parse_scheme(name).name == name == parse_spec(name).name
    assert parse_scheme(parse_scheme(name).name) == parse_scheme(name)


def test_different_names_are_different_schemes() -> None:
    schemes = [parse_scheme(name) for name in NAMES]
    assert all(one != other for n, one in enumerate(schemes) for other in schemes[:n])


@given(
    kind=st.sampled_from(["topk", "randomk"]),
    ratio=st.floats(0, 1, exclude_min=True),
    payload=st.sampled_from(["", "int8", "bf16"]),
)
def test_any_ratio_comes_back(kind, ratio: float, payload) -> None:
    spec = Spec(kind, ratio=ratio, payload=payload)
    assert parse_spec(spec.name) == spec
    assert parse_scheme(spec.name).name == spec.name


def test_case_and_space_do_not_matter() -> None:
    assert parse_scheme(" PowerSGD:4+INT8 ") == parse_scheme("powersgd:4+int8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'': there is no such scheme; write one of none, bf16, fp16, int8, int4, sign, topk:0.01, randomk:0.01, "),
        ("int16", "there is no such scheme; write int"),
        ("powersdg:4", "write powersgd:4"),
        ("top-k:0.1", "write topk:0.01"),
        ("zzz", "write one of none"),
        ("auto", "auto chooses among schemes and is none itself"),
        ("int8:3", "int8 takes no argument; write int8"),
        ("bf16+int8", "bf16 has nothing that could travel as int8; write bf16"),
        ("none+", "none has nothing that could travel as something else; write none"),
        ("topk", "the share of elements is missing; write topk:0.01 for one in a hundred"),
        ("topk:", "the share of elements is missing"),
        ("topk:x", "'x' is no number; write topk:0.01"),
        ("topk:0", "above 0 and up to 1, not 0; write topk:0.01"),
        ("topk:5", "above 0 and up to 1, not 5; write topk:0.05 for 5 %"),
        ("topk:nan", "above 0 and up to 1, not nan"),
        ("randomk:-1", "above 0 and up to 1, not -1; write randomk:0.01"),
        ("randomk:inf", "above 0 and up to 1, not inf"),
        ("powersgd", "the rank is missing; write powersgd:4"),
        ("powersgd:0", "a rank is a whole number of 1 or more, not '0'; write powersgd:4"),
        ("powersgd:1.5", "not '1.5'"),
        ("powersgd:-2", "not '-2'"),
        ("powersgd:4+int4", "travels as float32, int8 or bf16; write powersgd:4+int8 or powersgd:4+bf16"),
        ("powersgd:4+", "travels as float32, int8 or bf16"),
        ("topk:0.1+int8+bf16", "travels as float32, int8 or bf16"),
    ],
)
def test_what_is_no_scheme_is_refused_with_what_to_write(text: str, message: str) -> None:
    with pytest.raises(UnknownScheme) as refused:
        parse_scheme(text)
    assert message in str(refused.value)
    assert f"compression scheme {text!r}: " in str(refused.value)


@given(st.text(max_size=20) | st.text(alphabet="topkrandmwesg:.+0123456789int", max_size=20))
def test_any_text_is_a_scheme_or_refused(text: str) -> None:
    try:
        spec = parse_spec(text)
    except UnknownScheme:
        return
    assert parse_spec(spec.name) == spec


def test_names_are_read_without_torch() -> None:
    """A command line may refuse a name before it starts anything."""
    code = (
        "import sys; from distroml.planner.compression import parse_spec;"
        "assert parse_spec('topk:0.1').ratio == 0.1;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
