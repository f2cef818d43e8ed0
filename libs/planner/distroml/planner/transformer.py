"""A transformer described in numbers becomes a `ModelProfile`; nothing is built.

Operations and saved bytes follow Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models"
(arXiv 2205.05198, §4 and table 2), term by term; with grouped key and value heads and gated MLPs the same counting is
carried on. In the comments s is the sequence, h hidden, a heads, t the tp ranks, c bytes of an element.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from distroml.planner.plan import PlanRefused
from distroml.planner.profile import ModelProfile, Saved, Shape, Unit, Work
from distroml.planner.training import ITEMSIZE, Precision

Attention = Literal["core", "flash"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transformer:
    """A decoder's sizes.

    Attributes:
        hidden: width of the residual stream.
        layers: blocks.
        heads: attention heads.
        kv_heads: key and value heads; None: as many as `heads`.
        ffn: width inside the MLP; None: 4 times `hidden`.
        vocab: rows of the embedding.
        seq: tokens of one sample.
        params_dtype: dtype in which parameters are stored.
        attention: "core" writes the scores to memory, "flash" keeps them in tiles; None: flash for models of its
            time (`gated` or grouped heads), else core.
        gated: three matrices in the MLP (SwiGLU), no biases, no dropout, no learned positions and an output matrix
            of its own; None: where `ffn` is not 4 times `hidden`.
    """

    hidden: int
    layers: int
    heads: int
    vocab: int
    seq: int
    kv_heads: int | None = None
    ffn: int | None = None
    params_dtype: Precision = "bf16"
    attention: Attention | None = None
    gated: bool | None = None

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "heads", "vocab", "seq", "kv_heads", "ffn"):
            value: int | None = getattr(self, name)
            if value is not None and value < 1:
                raise PlanRefused(f"transformer.{name} must be at least 1, got {value}")
        if self.hidden % self.heads:
            raise PlanRefused(
                f"transformer.hidden={self.hidden} is not divisible by heads={self.heads}; "
                f"nearest that is: {_nearest_multiple(self.hidden, self.heads)}"
            )
        if self.kv_heads and self.heads % self.kv_heads:
            raise PlanRefused(f"transformer.heads={self.heads} is not divisible by kv_heads={self.kv_heads}")
        if self.params_dtype not in ITEMSIZE:
            raise PlanRefused(f"transformer.params_dtype must be one of {', '.join(ITEMSIZE)}, got {self.params_dtype}")

    @property
    def modern(self) -> bool:
        """Gated, without biases and dropout."""
        return self.ffn not in (None, 4 * self.hidden) if self.gated is None else self.gated

    @property
    def is_flash(self) -> bool:
        """Whether attention keeps its scores in tiles."""
        if self.attention is None:
            return self.modern or self.kv_heads not in (None, self.heads)
        return self.attention == "flash"


def _nearest_multiple(value: int, factor: int) -> int:
    return max(factor, round(value / factor) * factor)


def transformer_profile(model: Transformer, precision: Precision = "bf16") -> ModelProfile:
    """The profile of `model` in training at `precision`.

    It is priced as engines run it whose measurements are published.
    """
    block = _block(model, ITEMSIZE[precision])
    blocks = tuple(replace(block, name=f"layers.{number}") for number in range(model.layers))
    last = len(blocks) + 1
    tied = () if model.modern else ((0, last),)
    return ModelProfile(
        name=f"transformer of {model.layers} layers, hidden {model.hidden}",
        units=(_embedding(model, ITEMSIZE[precision]), *blocks, _head(model, ITEMSIZE[precision])),
        tied=tied,
        tied_parameters=tuple(model.vocab * model.hidden for _ in tied),
        parameter_itemsize=ITEMSIZE[model.params_dtype],
        tp_limits={
            "heads": model.heads,
            "kv_heads": model.kv_heads or model.heads,
            "ffn": model.ffn or 4 * model.hidden,
        },
        tokens=model.seq,
        engine="megatron",
    )


def _block(model: Transformer, c: int) -> Unit:
    s, h, a = model.seq, model.hidden, model.heads
    kv = (model.kv_heads or a) * (h // a)
    f = model.ffn or 4 * h
    gated, dropout = model.modern, not model.modern
    matrices = 2 * h * h + 2 * h * kv + (3 if gated else 2) * h * f
    # Biases of QKV and of the first MLP matrix lie with their columns, the others and the norms on every rank.
    split_biases = 0 if gated else h + 2 * kv + f
    whole = 2 * h if gated else 4 * h + 2 * h

    products = 2 * s * matrices
    scores = 0 if model.is_flash else a * s * s
    attention_flops = 4 * s * s * h
    forward = products + attention_flops
    tiled = attention_flops if model.is_flash else 0

    # Element-wise traffic and both sides of each matrix product, in elements per token.
    moved_whole = s * (14 * h * c + (2 * h if dropout else 0))
    moved_split = s * c * (2 * (h + 2 * kv) + 2 * h + f * (6 if gated else 4))
    # Scores are written once and pass the softmax, the dropout and the product with the values.
    moved_scores = scores * ((6 * c + 1) if dropout else 4 * c)
    moved = moved_whole + moved_split + moved_scores
    backward_moved = 2 * (moved_whole + moved_split) + 1.5 * moved_scores

    # Table 2: two norms' inputs, two inputs of matrix products and two dropout masks on each rank: 10sh.
    saved_whole = s * h * (4 * c + (2 if dropout else 0))
    # Q, K, V and the projection's input, and the MLP's inside: 24sh/t.
    saved_split = s * c * (h + 2 * kv + h + f * (3 if gated else 2))
    # Softmax output, dropout mask and dropout output: 5as²/t.
    saved_scores = scores * ((2 * c + 1) if dropout else c)
    lse = 4 * a * s if model.is_flash else 0
    return Unit(
        name="layer",
        kind="block",
        shape="layer",
        parameters=matrices + split_biases + whole,
        split_parameters=matrices + split_biases,
        shapes=(
            Shape((h + 2 * kv, h), divided=0),
            Shape((h, h), divided=1),
            Shape((f, h), 2 if gated else 1, divided=0),
            Shape((h, f), divided=1),
        ),
        forward=Work(flops=forward, attention_flops=tiled, moved_bytes=moved),
        backward=Work(flops=2 * forward, attention_flops=2 * tiled, moved_bytes=backward_moved),
        split=1.0,
        moved_split=1 - moved_whole / moved,
        recomputed=Work() if model.is_flash else Work(flops=attention_flops, moved_bytes=moved_scores),
        kernels=12 if model.is_flash else 18,
        saved={
            "none": Saved(whole_bytes=saved_whole, split_bytes=saved_split + saved_scores + lse),
            "selective": Saved(whole_bytes=saved_whole, split_bytes=saved_split + lse),
            "full": Saved(whole_bytes=s * h * c),
        },
        transient_bytes=2 * c * (s * f + scores),
        output_bytes=s * h * c,
        tp_reduced_bytes=2 * s * h * c,
        tp_collectives=2,
    )


def _embedding(model: Transformer, c: int) -> Unit:
    s, h = model.seq, model.hidden
    # A dropout mask is all that the embedding leaves (§4.3); its output is the first block's input.
    saved = Saved(whole_bytes=0 if model.modern else s * h)
    return Unit(
        name="before",
        kind="before",
        shape="before",
        parameters=model.vocab * h + (0 if model.modern else s * h),
        split_parameters=model.vocab * h,
        shapes=(Shape((model.vocab, h), divided=0), *(() if model.modern else (Shape((s, h)),))),
        forward=Work(moved_bytes=4 * s * h * c),
        backward=Work(moved_bytes=4 * s * h * c),
        saved={"none": saved, "selective": saved, "full": saved},
        output_bytes=s * h * c,
        tp_reduced_bytes=s * h * c,
        tp_collectives=1,
    )


def _head(model: Transformer, c: int) -> Unit:
    s, h, v = model.seq, model.hidden, model.vocab
    norm = h if model.modern else 2 * h
    flops = 2 * s * h * v
    # Logits are written, turned to 32 bits and read for the largest, the sum and the loss.
    whole, split = 4 * s * h * c, s * v * (c + 12)
    saved = Saved(whole_bytes=2 * s * h * c, split_bytes=4 * s * v)
    return Unit(
        name="after",
        kind="after",
        shape="after",
        parameters=norm + v * h,
        split_parameters=v * h,
        # Where it is the embedding's, the embedding tells of it.
        shapes=(Shape((v, h), divided=0),) if model.modern else (),
        forward=Work(flops=flops, moved_bytes=whole + split),
        backward=Work(flops=2 * flops, moved_bytes=2 * (whole + split)),
        split=1.0,
        moved_split=split / (whole + split),
        kernels=8,
        saved={"none": saved, "selective": saved, "full": saved},
        transient_bytes=4 * s * v,
        tp_reduced_bytes=s * h * c,
        tp_collectives=1,
    )
