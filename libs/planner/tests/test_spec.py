"""Specs: read whole, and every mistake told at once."""

import copy

import pytest

from distroml.planner import PlanRefused, read_spec

SPEC = {
    "model": {"transformer": {"hidden": 4096, "layers": 32, "heads": 32, "vocab": 50000, "seq": 2048}},
    "cluster": {"nodes": 2, "gpus_per_node": 8, "gpu": "A100", "intra_gb_per_s": 300, "inter_gb_per_s": 25},
    "batch": {"global": 64},
    "training": {"optimizer": "adamw", "precision": "bf16", "recompute": "auto"},
}


def changed(path, value):
    spec = copy.deepcopy(SPEC)
    *parents, name = path.split(".")
    place = spec
    for parent in parents:
        place = place[parent]
    if value is None:
        del place[name]
    else:
        place[name] = value
    return spec


def test_a_whole_spec_is_read():
    spec = read_spec(SPEC)
    assert spec.topology.world_size == 16
    assert spec.topology.levels[1].bytes_per_s < 25e9  # nominal, and what collectives reach of it
    assert spec.global_batch == 64
    assert spec.training.master_weights
    assert spec.recompute is None
    assert spec.transformer.is_flash is False


def test_the_gpu_may_be_described_and_links_left_out():
    gpu = {"tflops": 312, "memory_gib": 80, "memory_gb_per_s": 2039}
    spec = changed("cluster", {"nodes": 1, "gpus_per_node": 2, "gpu": gpu, "inter_latency_us": 0})
    assert read_spec(spec).topology.device.peak("bf16") == 312e12


def test_newer_gpus_run_attention_by_tiles_unless_told_otherwise():
    assert read_spec(changed("cluster.gpu", "H100")).transformer.is_flash
    told = changed("model.transformer.attention", "core")
    told["cluster"]["gpu"] = "H100"
    assert not read_spec(told).transformer.is_flash


def test_a_model_from_code_needs_its_sample():
    spec = changed("model", {"entry": "train:model", "sample": "train:sample"})
    assert read_spec(spec).entry == "train:model"
    assert not read_spec(spec).training.master_weights
    with pytest.raises(PlanRefused, match=r"model\.sample is missing"):
        read_spec(changed("model", {"entry": "train:model"}))


def test_a_live_cluster_needs_no_description():
    assert read_spec(changed("cluster", None), live=True).topology is None
    with pytest.raises(PlanRefused, match="cluster is missing"):
        read_spec(changed("cluster", None))


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("batch", None, "batch is missing"),
        ("batch.global", None, r"batch\.global is missing: it takes a whole number"),
        ("batch.global", 6.5, r"batch\.global must be a whole number above 0, not 6\.5"),
        ("batch.global", True, r"batch\.global must be a whole number"),
        ("batch.gobal", 3, r"batch\.gobal is no field: did you mean global"),
        ("models", 3, "models is no field: did you mean model"),
        ("model.transformer.hiden", 3, r"model\.transformer\.hiden is no field: did you mean hidden"),
        ("model.transformer.layers", -1, r"model\.transformer\.layers must be a whole number above 0"),
        ("model.transformer.heads", 33, "not divisible by heads=33"),
        ("model.entry", "a:b", "not both"),
        ("model.transformer", 7, r"model\.transformer must be a mapping"),
        ("cluster.gpu", "H10", "did you mean H100"),
        ("cluster.gpu", {"tflops": 1}, r"cluster\.gpu\.memory_gib is missing"),
        ("cluster.gpu", 7, r"cluster\.gpu must be a mapping"),
        ("cluster.intra_latency_us", -1, r"intra_latency_us must be a number of at least 0"),
        ("training.precision", "bf61", "did you mean bf16"),
        ("training.recompute", "some", "one of none, selective, full, auto"),
    ],
)
def test_a_mistake_is_named(path, value, why):
    with pytest.raises(PlanRefused, match=why):
        read_spec(changed(path, value))


def test_all_mistakes_are_told_at_once():
    spec = changed("batch.global", None)
    spec["training"]["optimzer"] = "adam"
    spec["cluster"]["nodes"] = "two"
    with pytest.raises(PlanRefused) as refused:
        read_spec(spec)
    assert len(str(refused.value).splitlines()) == 3


@pytest.mark.parametrize("spec", [None, 3, [], "text"])
def test_no_mapping_is_no_spec(spec):
    with pytest.raises(PlanRefused, match="must be a mapping"):
        read_spec(spec)
