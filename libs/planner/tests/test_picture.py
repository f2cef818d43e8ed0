from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from distroml.planner import (
    Plan,
    Prediction,
    Pricer,
    Training,
    Transformer,
    complete,
    described,
    gpu,
    parse_wish,
    transformer_profile,
)
from distroml.planner.picture import Drawing, Level, draw
from distroml.planner.picture.mesh import axis_place

GIB = 2.0**30
SVG = "{http://www.w3.org/2000/svg}"


def drawing(**changes: object) -> Drawing:
    plan = Plan(tp=2, pp=2, dp_replicate=2, microbatch=1, grad_accum_steps=4, stages=(3, 2))
    memory = {"parameters": 8 * GIB, "activations": 4 * GIB}
    given: dict[str, object] = {
        "plan": plan,
        "name": "gpt",
        "blocks": (3, 2),
        "levels": (Level(name="node", ranks=4), Level(name="cluster", ranks=8)),
        "microbatches": 4,
        "forward_s": (0.1, 0.1),
        "backward_s": (0.2, 0.2),
        "send_s": 0.001,
        "after_s": {"gradients": 0.05},
        "memory_bytes": (memory, memory),
        "capacity_bytes": 16 * GIB,
        "step_seconds": 1.6,
        "mfu": 0.4,
    }
    return Drawing(**(given | changes))  # pyright: ignore[reportArgumentType]


def one_rank(**changes: object) -> Drawing:
    plain = {"plan": Plan(grad_accum_steps=4), "blocks": (4,), "forward_s": (0.1,), "backward_s": (0.2,)}
    return drawing(**({**plain, "memory_bytes": (), "levels": ()} | changes))


def parsed(shown: Drawing) -> ElementTree.Element:
    return ElementTree.fromstring(draw(shown))


def words(root: ElementTree.Element) -> set[str]:
    return {text.text or "" for text in root.iter(f"{SVG}text")}


def bars(root: ElementTree.Element, cls: str) -> list[tuple[float, float, str]]:
    """Left edge, width and title of each bar."""
    return [
        (float(rect.get("x", 0)), float(rect.get("width", 0)), title.text or "")
        for rect in root.iter(f"{SVG}rect")
        if rect.get("class") == cls and (title := rect.find(f"{SVG}title")) is not None
    ]


def test_every_pass_of_the_step_is_drawn_where_it_runs():
    shown = drawing()
    root = parsed(shown)
    forward, backward = bars(root, "forward"), bars(root, "backward")
    assert len(forward) == len(backward) == 2 * 4
    assert "forward of microbatch 0 in stage 0, 0 µs to 100 ms" in {title for *_, title in forward}
    widths = {round(width) for _, width, _ in forward}
    assert len(widths) == 1
    assert min(width for _, width, _ in backward) == pytest.approx(2 * max(widths), rel=0.02)
    start = min(x for x, *_ in forward)
    second = next(x for x, _, title in forward if "microbatch 0 in stage 1" in title)
    assert second - start == pytest.approx((0.1 + 0.001) / 0.1 * max(widths), rel=0.02)


def test_the_bubble_is_said_and_what_the_prediction_has_beside_the_passes_is_shown_as_rest():
    shown = drawing()
    assert 0.15 < shown.bubble < 0.3
    root = parsed(shown)
    assert f"bubble {shown.bubble:.1%}" in words(root)
    (rest,) = [title for *_, title in bars(root, "rest")]
    assert rest.startswith("rest: ")
    exact = shown.passes_s + 0.05
    assert not bars(parsed(drawing(step_seconds=exact)), "rest")


def test_a_prediction_that_is_less_than_its_passes_take_is_said_to_be_so():
    assert not any("pass by pass" in text for text in words(parsed(drawing())))
    short = drawing(step_seconds=1.0)
    assert any("where 1 s are predicted in all" in text for text in words(parsed(short)))
    assert not bars(parsed(short), "rest")


def test_a_prediction_is_drawn_on_the_machines_it_is_made_for():
    model = transformer_profile(Transformer(hidden=1024, layers=8, heads=8, vocab=32000, seq=512))
    machines = described(gpu("a100"), nodes=2, devices_per_node=4, intra_bytes_per_s=300e9, inter_bytes_per_s=25e9)
    wish = parse_wish("pp=2,tp=2,dp_shard=2,microbatch=2,schedule=1f1b")
    prediction = complete(Pricer(model, machines, Training(), 32), wish)
    assert isinstance(prediction, Prediction)
    shown = Drawing.of(prediction, machines, name="small")
    assert [(level.name, level.ranks) for level in shown.levels] == [("node", 4), ("cluster", 8)]
    assert shown.microbatches == 8
    parts = prediction.seconds
    passes = sum(parts[name] for name in ("compute", "recompute", "tp", "bubble", "p2p"))
    # The price lets every message hold its rank up; drawn, it does so where nothing else is to do.
    assert passes - parts["p2p"] <= shown.passes_s * 1.001 <= passes * 1.01
    assert "small" in words(parsed(shown))
    assert max(sum(rank.values()) for rank in shown.memory_bytes) == pytest.approx(prediction.peak_bytes_per_rank)


def test_memory_by_part_its_limit_and_the_mesh_are_there():
    texts = words(parsed(drawing()))
    assert {"parameters", "activations", "12 GiB", "16 GiB there is", "40.0%"} <= texts
    assert {"pp", "dp_replicate", "tp", "node 0", "node 1", "stages of the chain: ranks 0, 4"} <= texts
    assert {"0–2", "3–4"} <= texts


def test_axes_are_placed_on_the_levels_that_their_lines_fit_into():
    shown = drawing()
    node, cluster = shown.levels
    assert axis_place(shown, "tp") == (1, node)
    assert axis_place(shown, "dp_replicate") == (2, node)
    assert axis_place(shown, "pp") == (4, cluster)
    assert axis_place(drawing(levels=(Level(name="node", ranks=3),)), "tp") == (1, None)


def test_one_rank_has_no_bubble_and_no_mesh():
    shown = one_rank()
    assert shown.bubble == pytest.approx(0)
    texts = words(parsed(shown))
    assert "one rank: nothing is split or copied" in texts
    assert not any("bubble" in text for text in texts)


def test_thousands_of_passes_stay_a_small_picture_and_nodes_beyond_the_room_are_counted():
    plan = Plan(tp=8, pp=64, dp_replicate=6, microbatch=1, grad_accum_steps=512, stages=(2,) * 64)
    shown = drawing(
        plan=plan,
        blocks=plan.stages,
        levels=(Level(name="node", ranks=8), Level(name="cluster", ranks=3072)),
        microbatches=512,
        forward_s=(0.05,) * 64,
        backward_s=(0.1,) * 64,
        memory_bytes=({"parameters": GIB},) * 64,
    )
    assert len(shown.intervals) == 2 * 64 * 512
    assert len(draw(shown)) < 500_000
    texts = words(parsed(shown))
    assert {"375 more", "many in turn"} <= texts
    assert "… 53 more stages" in texts


def test_more_passes_than_can_be_drawn_are_said_to_be_fewer():
    shown = one_rank(plan=Plan(grad_accum_steps=200_000), microbatches=200_000)
    assert shown.drawn < shown.microbatches
    assert any(text.startswith(f"{shown.drawn} of 200000") for text in words(parsed(shown)))


def test_text_of_a_model_stays_text():
    root = parsed(drawing(name='<script>alert("x")</script>&'))
    assert '<script>alert("x")</script>&' in words(root)
    assert root.find(f".//{SVG}script") is None


def test_a_drawing_travels_as_json():
    shown = drawing(plan=replace(drawing().plan, reasons=("because",)))
    back = Drawing.from_json(shown.to_json())
    assert back.plan == replace(shown.plan, reasons=())
    assert Drawing.from_json(back.to_json()) == back
    assert draw(back) == draw(shown)
    for broken in ("nonsense", "{}", json.dumps({**json.loads(shown.to_json()), "blocks": [1]})):
        with pytest.raises(ValueError, match="no drawing"):
            Drawing.from_json(broken)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"blocks": (1,)}, "blocks has 1 entries for 2 stages"),
        ({"memory_bytes": ({},) * 3}, "memory_bytes has 3 entries for pp=2"),
        ({"microbatches": 0}, "microbatches must be 1 or more"),
    ],
)
def test_a_drawing_that_contradicts_its_plan_is_refused(changes: dict[str, object], why: str):
    with pytest.raises(ValueError, match=why):
        drawing(**changes)
