"""`distroml plan`, as a user calls it: on paper, for models in code, for live machines."""

from __future__ import annotations

import itertools
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from distroml.api.scheduler.v1 import jobs_pb2
from distroml.cli.errors import CliError, UsageError
from distroml.cli.live_cluster import cluster_of
from distroml.cli.main import app

SPEC = """\
model:
  transformer: {hidden: 4096, layers: 32, heads: 32, kv_heads: 8, ffn: 14336, vocab: 128256, seq: 4096}
cluster: {nodes: 2, gpus_per_node: 8, gpu: h100, intra_gb_per_s: 450, inter_gb_per_s: 50}
batch: {global: 64}
training: {optimizer: adamw, precision: bf16, recompute: auto}
"""


@dataclass
class Cli:
    """Calls `distroml plan` on a spec in a folder."""

    folder: Path
    text: str = SPEC

    @property
    def spec(self) -> Path:
        path = self.folder / "spec.yaml"
        path.write_text(self.text)
        return path

    def says(self, *words: str) -> str:
        result = CliRunner().invoke(app, ["plan", str(self.spec), *words])
        if result.exception is not None:
            raise result.exception
        return result.output

    def object(self, *words: str) -> dict[str, object]:
        return json.loads(self.says(*words, "--json"))


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def test_the_best_plan_as_json(cli: Cli):
    told = cli.object()
    assert {"plan", "prediction", "alternatives", "binding"} <= told.keys()
    plan, prediction = told["plan"], told["prediction"]
    assert plan["dp_replicate"] * plan["dp_shard"] * plan["tp"] * plan["pp"] == 16
    assert plan["reasons"]
    assert {"step_seconds", "peak_bytes_per_rank", "parts", "mfu"} <= prediction.keys()
    assert 0 < prediction["mfu"] < 1
    parts = prediction["parts"]
    assert sum(parts["seconds"].values()) == pytest.approx(prediction["step_seconds"])
    assert sum(parts["bytes"].values()) == pytest.approx(prediction["peak_bytes_per_rank"], rel=1e-6)
    for other in told["alternatives"]:
        assert other["reason"]
        assert other["prediction"]["step_seconds"] > 0
    assert told == cli.object(), "equal questions have equal answers"


def test_the_best_plan_for_people(cli: Cli):
    text = cli.says()
    plan = cli.object()["plan"]["text"]
    for expected in (plan, "16 x H100", "what binds", "why", "what else was possible", "on the rank that needs most"):
        assert expected in text


def test_a_price_and_why_a_plan_is_not_possible(cli: Cli):
    told = cli.object("--price", "tp=8,pp=2,microbatch=2,schedule=1f1b")
    assert (told["plan"]["tp"], told["plan"]["pp"], told["plan"]["schedule"]) == (8, 2, "1f1b")
    assert told["prediction"]["step_seconds"] > cli.object()["prediction"]["step_seconds"]
    refused = cli.object("--price", "tp=16")
    assert "prediction" not in refused
    assert "kv_heads" in refused["reason"]
    assert "not possible: tp=16 does not divide" in cli.says("--price", "tp=16")
    large = cli.object("--price", "dp_replicate=16,microbatch=4")
    assert "prediction" not in large
    assert large["missing_bytes"] > 0
    assert large["without_limit"]["peak_bytes_per_rank"] > 80 << 30


def test_the_spec_says_what_is_recomputed_where_a_plan_does_not(tmp_path: Path):
    cli = Cli(tmp_path, SPEC.replace("recompute: auto", "recompute: full"))
    assert cli.object("--price", "dp_shard=16")["plan"]["recompute"] == "full"
    assert cli.object("--price", "dp_shard=16,recompute=none")["plan"]["recompute"] == "none"
    assert cli.object()["plan"]["recompute"] == "full"


def test_a_file_of_plans_is_priced_a_line_each(cli: Cli):
    plans = ["tp=8,pp=2,microbatch=1", "", "tp=16", "tp=two", "dp_shard=16,microbatch=1"] + ["dp_shard=16"] * 996
    (cli.folder / "plans").write_text("\n".join(plans))
    began = time.process_time()
    lines = cli.says("--price", f"@{cli.folder / 'plans'}").splitlines()
    assert time.process_time() - began < 5
    told = [json.loads(line) for line in lines]
    assert len(told) == 1000
    assert [("prediction" in one, "reason" in one) for one in told[:4]] == [
        (True, False), (False, True), (False, True), (True, False),
    ]  # fmt: skip
    assert "tp must be a positive whole number" in told[2]["reason"]


def test_a_thousand_different_plans_take_at_most_5_seconds_with_the_start_of_the_command(cli: Cli):
    degrees = [(tp, pp) for tp in (1, 2, 4, 8) for pp in (1, 2, 4, 8, 16) if tp * pp <= 16]
    plans = [
        f"tp={tp},pp={pp},{axis}={16 // tp // pp},microbatch={size},schedule={schedule},recompute={again}"
        for tp, pp in degrees
        for axis, size, schedule, again in itertools.product(
            ("dp_replicate", "dp_shard"), (1, 2, 4), ("1f1b", "gpipe", "zero_bubble"), ("none", "selective", "full")
        )
    ]
    plans = [f"{plan},bucket_mb={size}" for size in (4, 25) for plan in plans][:1000]
    assert len(set(plans)) == 1000
    (cli.folder / "plans").write_text("\n".join(plans))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "distroml.cli.main", "plan", str(cli.spec), "--price", f"@{cli.folder / 'plans'}"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert len(ran.stdout.splitlines()) == 1000
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5


def test_why_not_and_what_would_change(cli: Cli):
    told = cli.object("--why-not", "tp=8")
    assert told["plan"]["tp"] == 8
    assert "slower" in told["reason"] or "as fast" in told["reason"]
    assert told["chosen"]["prediction"]["step_seconds"] <= told["prediction"]["step_seconds"]
    assert "with tp=8" in cli.says("--why-not", "tp=8")
    assert "plan" not in (impossible := cli.object("--why-not", "tp=16"))
    assert "kv_heads" in impossible["reason"]
    assert "tp=16 is not possible" in cli.says("--why-not", "tp=16")
    changes = [case["change"] for case in cli.object("--sensitivity")["sensitivity"]]
    assert changes == [
        "a global batch of 32",
        "a global batch of 128",
        "links at half the rate",
        "links at twice the rate",
    ]
    assert "with links at half the rate" in cli.says("--sensitivity")


def test_the_picture_is_of_the_plan(cli: Cli):
    picture = cli.folder / "plan.svg"
    cli.says("--price", "tp=4,pp=4,microbatch=1,schedule=1f1b", "--picture", str(picture))
    root = ElementTree.fromstring(picture.read_text())
    texts = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"pp 3", "node 1", "One step in time"} <= texts
    cli.says("--picture", str(picture), "--json")
    with pytest.raises(UsageError, match="cannot be drawn: tp=16"):
        cli.says("--price", "tp=16", "--picture", str(picture))
    with pytest.raises(UsageError, match="cannot write the picture"):
        cli.says("--picture", str(cli.folder / "no" / "such" / "folder.svg"))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--price", "tp=two"), "tp must be a positive whole number"),
        (("--price", "tpp=2"), "did you mean tp"),
        (("--why-not", "tp"), "expected 'auto' or NAME=VALUE"),
        (("--price", "tp=2", "--why-not", "tp=4"), "ask one at a time"),
        (("--price", "@/no/such/file"), "cannot read plans from /no/such/file"),
        (("--why-not", "tp=4", "--picture", "a.svg"), "--picture draws one plan"),
    ],
)
def test_wrong_usage_is_said_to_be_so(cli: Cli, words: tuple[str, ...], why: str):
    with pytest.raises(UsageError, match=why) as caught:
        cli.says(*words)
    assert caught.value.exit_code == 2


def test_a_model_that_fits_nowhere_says_by_how_much(tmp_path: Path):
    cli = Cli(tmp_path, SPEC.replace("layers: 32", "layers: 3200"))
    with pytest.raises(CliError, match=r"^no plan fits into memory: .*GiB") as caught:
        cli.says()
    assert caught.value.exit_code == 1


MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))

    def forward(self, x):
        for block in self.blocks:
            x = torch.relu(block(x))
        return x

def build():
    return Net()

def batch():
    return torch.zeros(2, 32)

def loss(model, batch):
    return model(batch).square().sum(), batch.shape[0]

def broken():
    raise OSError("no weights here")
"""
OWN = "model: {{{}}}\ncluster: {{nodes: 1, gpus_per_node: 2, gpu: a100}}\nbatch: {{global: 8}}\n"


@pytest.fixture
def own(tmp_path: Path):
    name = f"own_model_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODEL)
    yield lambda fields: Cli(tmp_path, OWN.format(fields.replace("own:", f"{name}:")))
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "fields",
    [
        "entry: 'own:build', sample: 'own:batch'",
        "entry: 'own:build', sample: 'own:batch', loss: 'own:loss'",
        "entry: 'own:Net', sample: {x: {shape: [2, 32], dtype: float32}}",
    ],
)
def test_a_model_in_code_is_profiled(own, fields: str):
    before = list(sys.path)
    told = own(fields).object()
    assert told["prediction"]["peak_bytes_per_rank"] > 4 * 32 * 33 * 4
    assert sys.path == before


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ("entry: 'no_such_module:f', sample: 'own:batch'", "importing no_such_module failed"),
        ("entry: 'own:absent', sample: 'own:batch'", "has no function or class absent"),
        ("entry: 'own:broken', sample: 'own:batch'", r"own_model.*:broken\(\) failed: OSError: no weights here"),
        ("entry: 'own:build', sample: {x: {shape: [2, 31], dtype: float32}}", "cannot be profiled"),
        ("entry: 'own:build', sample: {x: {shape: 3}}", "`model.sample.x` is {shape"),
        ("entry: 'own:build', sample: 3", "`model.sample` is `module:function`"),
    ],
)
def test_a_model_in_code_that_does_not_work_is_refused(own, fields: str, why: str):
    with pytest.raises(UsageError, match=why):
        own(fields).says()


WITHOUT_TORCH = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "numpy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from distroml.cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (SPEC, 0, '"step_seconds"'),
        (OWN.format("entry: 'json:loads', sample: 'json:loads'"), 2, "torch is not installed here"),
    ],
)
def test_only_a_model_in_code_needs_torch(tmp_path: Path, text: str, code: int, said: str):
    words = [sys.executable, "-c", WITHOUT_TORCH, "plan", str(Cli(tmp_path, text).spec), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr


def node(name: str, *kinds: str, state: jobs_pb2.NodeState = jobs_pb2.NODE_STATE_READY, gpu: str = "") -> jobs_pb2.Node:
    slots = [jobs_pb2.Slot(id=f"{kind}-{index}", kind=kind) for index, kind in enumerate(kinds)]
    return jobs_pb2.Node(id=name, state=state, slots=slots, labels={"gpu": gpu} if gpu else {})


def test_live_machines_are_taken_as_far_as_they_are_even():
    given = {"gpu": "a100"}
    lost = node("d", *["cuda"] * 8, state=jobs_pb2.NODE_STATE_LOST)
    found = cluster_of([node("a", *["cuda"] * 8), node("b", *["cuda"] * 8), node("c", "cuda", "cuda"), lost], given)
    assert found.fields == {"nodes": 2, "gpus_per_node": 8}
    assert found.notes == ("planned for 2 nodes with 8 cuda slots", "2 more slots lie unevenly and are left out")
    assert cluster_of([node("a", "cpu", "cpu"), node("b", "cuda")], given).fields == {"nodes": 1, "gpus_per_node": 1}


def test_live_devices_come_from_labels_or_are_taken_for_granted_and_said_so():
    assert cluster_of([node("a", "cuda", gpu="h100")], {}).fields["gpu"] == "h100"
    found = cluster_of([node("a", "cpu", "cpu")], {}, memory_bytes=16 << 30)
    assert found.fields["gpu"]["memory_gib"] == 8
    assert any("nobody measured" in note for note in found.notes)
    with pytest.raises(UsageError, match="nobody says which"):
        cluster_of([node("a", "cuda")], {})
    with pytest.raises(CliError, match="no node that is ready"):
        cluster_of([node("a", "cpu", state=jobs_pb2.NODE_STATE_CORDONED)], {})


def test_a_live_plan_without_a_control_plane_says_so(cli: Cli):
    with pytest.raises(CliError, match="control plane") as caught:
        cli.says("--live", "--data", str(cli.folder / "nothing"))
    assert caught.value.exit_code == 3


def test_compression_is_priced_and_told(cli: Cli):
    plan = ("--price", "dp_replicate=2,dp_shard=8,microbatch=1")
    plain = cli.object(*plan)["prediction"]
    packed = cli.object(*plan, "--compress", "int8", "--compress-shard", "int4")["prediction"]
    assert "compression" not in plain
    told = packed["compression"]
    assert (told["scheme"], told["shard"]) == ("int8", "int4")
    assert told["sent_bytes"]["dp_shard"] < 0.3 * told["dense_bytes"]["dp_shard"]
    assert packed["parts"]["seconds"]["dp_replicate"] != plain["parts"]["seconds"]["dp_replicate"]
    assert packed["parts"]["bytes"]["residuals"] == told["residual_bytes"] > 0
    text = cli.says(*plan, "--compress", "int8")
    assert "compress=int8: a rank sends" in text
    assert "compression takes up to" in text
    assert "bench comm" in text, "what was not measured is said"


def test_measured_work_of_codecs_is_reckoned_with(cli: Cli):
    plan = ("--price", "dp_replicate=16,tp=1,microbatch=1")
    cli.text = SPEC.replace("recompute: auto", "recompute: auto, compress: int8, compress_ms_per_mib: 2.0")
    told = cli.object(*plan)["without_limit"]["compression"]
    assert told["codec_measured"]
    assert told["codec_seconds"] == pytest.approx(2e-3 * 4 * 8.03e9 / 2**20, rel=0.01)


@pytest.mark.parametrize(
    ("scheme", "why"), [("auto", "on paper name a scheme"), ("int9", "there is no such scheme"), ("topk", "missing")]
)
def test_compression_that_cannot_be_planned_is_refused(cli: Cli, scheme: str, why: str):
    with pytest.raises(UsageError, match=why):
        cli.says("--compress", scheme)
