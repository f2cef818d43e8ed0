"""Exported files are what other libraries read; whatever is damaged or missing leaves no folder behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
import transformers
from torch import nn
from typer.testing import CliRunner

from distroml.cli.errors import CliError, UsageError
from distroml.cli.export import export_checkpoint, local_manifest
from distroml.cli.main import app
from distroml.manifest import Keys, TensorEntry, encode, hash_of, read_manifest
from distroml.objectstore.filesystem import FilesystemObjectStore, open_object_store
from distroml.runtime.checkpoint import capture
from distroml.runtime.training.catalogue import LocalCatalogue
from libs.runtime.tests.checkpoint.common import JOB, Net, save

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int16,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]


def gpt2() -> nn.Module:
    config = transformers.AutoConfig.for_model(
        "gpt2", n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32, bos_token_id=1, eos_token_id=1
    )
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def stored(folder: Path, model: nn.Module, world_size: int = 1) -> tuple[FilesystemObjectStore, str]:
    store = open_object_store(folder)
    sha, _ = save(
        store, capture(model, torch.optim.SGD(model.parameters())), 5, world_size=world_size, chunk_bytes=1000
    )
    return store, sha


@pytest.mark.parametrize("shard_bytes", [10**9, 10_000])
def test_from_pretrained_gives_equal_logits(shard_bytes: int, tmp_path: Path) -> None:
    model = gpt2()
    store, sha = stored(tmp_path / "objects", model, world_size=2)
    exported = export_checkpoint(store, JOB, sha, tmp_path / "out", hugging_face=True, shard_bytes=shard_bytes)
    assert ("model.safetensors.index.json" in exported.files) == (shard_bytes < 10**9)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_every_dtype_and_tensor_is_there(tmp_path: Path) -> None:
    net = Net()
    for number, dtype in enumerate(DTYPES):
        net.register_buffer(f"b{number}", (torch.arange(24).reshape(2, 3, 4) % 5).to(dtype))
    net.register_buffer("empty", torch.empty(0, 3))
    store, sha = stored(tmp_path / "objects", net)
    seen: list[tuple[int, int]] = []
    exported = export_checkpoint(
        store, JOB, sha, tmp_path / "out", progress=lambda done, total: seen.append((done, total))
    )
    assert exported.files == ("model.safetensors",)
    loaded = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert loaded.keys() == net.state_dict().keys()
    for name, tensor in net.state_dict().items():
        assert torch.equal(loaded[name], tensor), name
        assert loaded[name].dtype == tensor.dtype
    assert seen[-1] == (exported.size_bytes, exported.size_bytes)
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_slices_of_any_shape_are_put_together(tmp_path: Path) -> None:
    """As two by two ranks of tensor and data parallelism would have cut them."""
    whole = torch.arange(4 * 6 * 5, dtype=torch.int32).reshape(4, 6, 5)
    store, sha = stored(tmp_path / "objects", nn.Linear(2, 2))
    manifest = read_manifest(store.get(Keys(JOB).manifest(sha)), sha)
    entries = []
    for row in (0, 2):
        for column, width in ((0, 4), (4, 2)):
            for depth, thick in ((0, 3), (3, 2)):
                part = whole[row : row + 2, column : column + width, depth : depth + thick].contiguous()
                one, _ = save(store, {"model": {"w": part}}, 5)
                chunks = read_manifest(store.get(Keys(JOB).manifest(one)), one)
                entry = chunks.entries[0]
                entries.append((chunks, entry, (row, column, depth), tuple(part.shape)))
    objects = tuple(object for chunks, *_ in entries for object in chunks.objects)
    placed = []
    first = 0
    for chunks, entry, offsets, sizes in entries:
        moved = tuple(
            type(chunk)(chunk.object + first, chunk.offset, chunk.length, chunk.sha256) for chunk in entry.chunks
        )
        first += len(chunks.objects)
        placed.append(
            TensorEntry(
                fqn="model.w",
                path=("model", "w"),
                dtype="int32",
                shape=(4, 6, 5),
                offsets=offsets,
                sizes=sizes,
                chunks=moved,
            )
        )
    fields = {name: getattr(manifest, name) for name in manifest.__struct_fields__}
    data = encode(
        type(manifest)(**(fields | {"objects": objects, "entries": tuple(placed), "bytes_total": whole.nbytes}))
    )
    store.put(Keys(JOB).manifest(hash_of(data)), data)
    export_checkpoint(store, JOB, hash_of(data), tmp_path / "out")
    assert torch.equal(safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")["w"], whole)


def test_a_damaged_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    store, sha = stored(tmp_path / "objects", Net())
    pack = next(path for path in (tmp_path / "objects").rglob("r00000-*") if "data" in path.parts)
    data = bytearray(pack.read_bytes())
    data[3000] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    with pytest.raises(CliError, match="the checkpoint is damaged") as error:
        export_checkpoint(store, JOB, sha, tmp_path / "deep" / "out")
    assert "--step" in error.value.hint
    assert list((tmp_path / "deep").iterdir()) == []
    with pytest.raises(CliError, match="damaged"):
        export_checkpoint(store, JOB, "0" * 64, tmp_path / "out")


def test_what_cannot_be_is_refused_beforehand(tmp_path: Path) -> None:
    store, sha = stored(tmp_path / "objects", Net())
    with pytest.raises(UsageError, match="no Hugging Face configuration"):
        export_checkpoint(store, JOB, sha, tmp_path / "out", hugging_face=True)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(UsageError, match="is not empty"):
        export_checkpoint(store, JOB, sha, tmp_path / "taken")
    sha, _ = save(store, {"model": {"z": torch.zeros(2, dtype=torch.complex64)}}, 1)
    with pytest.raises(UsageError, match="z is complex64, which safetensors cannot hold"):
        export_checkpoint(store, JOB, sha, tmp_path / "out")
    sha, _ = save(store, {"other": {"z": torch.zeros(2)}}, 2)
    with pytest.raises(UsageError, match="no tensor under `model`"):
        export_checkpoint(store, JOB, sha, tmp_path / "out")


def test_the_command_exports_a_run_that_no_agent_started(tmp_path: Path) -> None:
    model = gpt2()
    store = open_object_store(tmp_path / "run")
    saves: list[str] = []
    for step in (3, 7):
        with torch.no_grad():
            model.lm_head.weight.fill_(step)
        sha, _ = save(store, capture(model), step)
        manifest = read_manifest(store.get(Keys(JOB).manifest(sha)), sha)
        fields = {name: getattr(manifest, name) for name in manifest.__struct_fields__} | {"job": "local"}
        data = encode(type(manifest)(**fields))
        store.put(Keys("local").manifest(hash_of(data)), data)
        store.put(f"{Keys('local').root}committed/{step:012d}", hash_of(data).encode())
        saves.append(hash_of(data))
    assert [ref.manifest_hash for ref in LocalCatalogue(store, "local").committed()] == saves[::-1]
    run = CliRunner().invoke
    done = run(app, ["checkpoints", "export", str(tmp_path / "run"), "--to", str(tmp_path / "new"), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert (told["step"], told["files"]) == (7, ["model.safetensors"])
    arguments = ["--step", "3", "--to", str(tmp_path / "old"), "--format", "hf"]
    done = run(app, ["checkpoints", "export", str(tmp_path / "run"), *arguments])
    assert done.exit_code == 0, done.output
    assert "step 3: 29 tensors" in done.output
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "old")
    assert float(again.lm_head.weight.detach().max()) == 3
    with pytest.raises(UsageError, match="no checkpoint of step 4"):
        local_manifest(store, tmp_path, 4)
    with pytest.raises(UsageError, match="has no checkpoint"):
        local_manifest(open_object_store(tmp_path / "none"), tmp_path, 0)
