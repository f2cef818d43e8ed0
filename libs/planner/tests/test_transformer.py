"""Transformers in numbers: operations, bytes and parameters are those of Korthikanti et al., to the last one."""

import pytest

from distroml.planner import PlanRefused, Transformer, transformer_profile
from distroml.planner.cost.chain import saved_bytes

GIB = 1 << 30
SIZES = {"22B": (6144, 48, 64, 4), "175B": (12288, 96, 96, 1), "530B": (20480, 105, 128, 1), "1T": (25600, 128, 160, 1)}


def gpt(name, **values):
    h, layers, a, _ = SIZES[name]
    return transformer_profile(
        Transformer(hidden=h, layers=layers, heads=a, vocab=51200, seq=2048, params_dtype="fp16", **values), "fp16"
    )


def saved_gib(name, tp, sequence, recompute):
    """Activations of all layers of one microbatch, as the first stage of the papers' schedules holds them."""
    _, layers, _, b = SIZES[name]
    pp, v = {"22B": (1, 1), "175B": (8, 3), "530B": (35, 3), "1T": (64, 1)}[name]
    factor = 1 + (pp - 1) / (pp * v) if v > 1 else 1
    block = gpt(name).blocks[0]
    return saved_bytes(block, tp, sequence, recompute) * b * layers * factor / GIB


@pytest.mark.parametrize(
    ("name", "none", "both"),
    [
        ("22B", 59.25, 9.5625),
        ("175B", 66.84375, 12.3515625),
        ("530B", 114.0234, 23.0762),
        ("1T", 131.25, 26.5625),
    ],
)
def test_activations_are_exact(name, none, both):
    assert saved_gib(name, 8, False, "none") == pytest.approx(none, abs=5e-5)
    assert saved_gib(name, 8, True, "selective") == pytest.approx(both, abs=5e-5)


@pytest.mark.parametrize(
    ("name", "sequence", "selective", "both", "full"),
    [
        ("22B", 66.84, 49.42, 16.18, 7.64),
        ("175B", 62.04, 56.53, 18.49, 8.71),
        ("530B", 58.31, 62.04, 20.27, 9.42),
        ("1T", 58.31, 62.04, 20.27, 9.42),
    ],
)
def test_what_each_technique_leaves_is_what_figure_7_says(name, sequence, selective, both, full):
    block, none = gpt(name).blocks[0], saved_bytes(gpt(name).blocks[0], 8, False, "none")
    shares = [
        100 * saved_bytes(block, 8, parallel, recompute) / none
        for parallel, recompute in ((True, "none"), (False, "selective"), (True, "selective"), (False, "full"))
    ]
    # The figure was read off to about a tenth of a percent.
    assert shares == pytest.approx([sequence, selective, both, full], abs=0.15)


@pytest.mark.parametrize(
    ("name", "pp", "gib"),
    [("22B", 1, 45.5625), ("175B", 8, 45.5625), ("530B", 35, 31.640625), ("1T", 64, 32.958984375)],
)
def test_matrices_and_their_optimizer_state_are_exact(name, pp, gib):
    h, layers, _, _ = SIZES[name]
    block = gpt(name, gated=False).blocks[0]
    biases = h + 2 * h + 4 * h
    assert block.split_parameters - biases == 12 * h * h
    assert 18 * (block.split_parameters - biases) * layers / 8 / pp / GIB == gib


@pytest.mark.parametrize(
    ("h", "layers", "a", "billions"), [(2304, 24, 24, 1.7), (12288, 80, 96, 145.6), (25600, 128, 160, 1008)]
)
def test_parameters_and_operations_are_those_of_the_formulas(h, layers, a, billions):
    s, v = 2048, 51200
    profile = transformer_profile(Transformer(hidden=h, layers=layers, heads=a, vocab=v, seq=s))
    assert profile.parameters / 1e9 == pytest.approx(billions, rel=0.03)
    # Exactly: 12Lh²(1 + 13/12h + (V+s)/12Lh), and the last norm's 2h that the formula leaves out.
    assert profile.parameters == 12 * layers * h * h + 13 * layers * h + (v + s) * h + 2 * h
    assert profile.model_flops == pytest.approx(72 * s * layers * h * h * (1 + s / (6 * h) + v / (12 * layers * h)))


def test_llama_has_its_405_billion():
    profile = transformer_profile(
        Transformer(hidden=16384, layers=126, heads=128, kv_heads=8, ffn=53248, vocab=128256, seq=8192)
    )
    assert profile.parameters / 1e9 == pytest.approx(405.85, abs=0.01)
    assert not profile.tied
    assert profile.tp_limits["kv_heads"] == 8


def test_attention_by_tiles_saves_no_scores():
    core, flash = gpt("175B", attention="core").blocks[0], gpt("175B", attention="flash").blocks[0]
    h, s, a = 12288, 2048, 96
    logsumexp = 4 * a * s
    assert saved_bytes(flash, 1, False, "none") == 34 * s * h + logsumexp
    assert saved_bytes(core, 1, False, "none") == 34 * s * h + 5 * a * s * s
    assert flash.recomputed.flops == 0
    assert core.recomputed.flops == 4 * s * s * h


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"hidden": 0}, "hidden must be at least 1"),
        ({"heads": 7}, "nearest that is: 63"),
        ({"kv_heads": 3}, "not divisible by kv_heads=3"),
        ({"params_dtype": "int4"}, "params_dtype must be one of"),
    ],
)
def test_sizes_that_cannot_be_are_refused(values, why):
    whole = {"hidden": 64, "layers": 2, "heads": 8, "vocab": 100, "seq": 16}
    with pytest.raises(PlanRefused, match=why):
        Transformer(**(whole | values))
