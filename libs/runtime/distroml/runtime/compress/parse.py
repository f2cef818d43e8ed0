"""Every text that names a scheme gives that scheme, and its name gives the text back."""

from __future__ import annotations

from typing import assert_never

from distroml.planner.compression import Payload, Spec, parse_spec
from distroml.runtime.compress.codecs import BF16, FLOAT32, INT4, INT8, SIGN, BlockCodec, CastCodec, TopK
from distroml.runtime.compress.scheme import Scheme
from distroml.runtime.compress.schemes import Coded, Dense, Float16, PowerSGD, RandomK


def parse_scheme(text: str) -> Scheme:
    """The scheme that `text` names, such as "int8", "topk:0.01+bf16" or "powersgd:4". Raises `UnknownScheme`."""
    return scheme_of(parse_spec(text))


def scheme_of(spec: Spec) -> Scheme:
    """The scheme with the settings `spec`."""
    match spec.kind:
        case "none":
            return Dense()
        case "bf16":
            return Coded(BF16)
        case "fp16":
            return Coded(Float16())
        case "int8":
            return Coded(INT8)
        case "int4":
            return Coded(INT4)
        case "sign":
            return Coded(SIGN)
        case "topk":
            return Coded(TopK(spec.ratio, _payload(spec.payload)))
        case "randomk":
            return RandomK(spec.ratio, _payload(spec.payload) if spec.payload else None)
        case "powersgd":
            # What is no matrix goes in as few bytes as the factors may take, and in bfloat16 where they stay whole.
            return PowerSGD(spec.rank, _payload(spec.payload), INT8 if spec.payload == "int8" else BF16)
        case _:
            assert_never(spec.kind)


def _payload(payload: Payload) -> BlockCodec | CastCodec:
    match payload:
        case "int8":
            return INT8
        case "bf16":
            return BF16
        case "":
            return FLOAT32
        case _:
            assert_never(payload)
