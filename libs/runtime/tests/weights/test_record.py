"""A recorded factory gives the weights of a real run bit for bit, whatever is read in whatever order."""

from __future__ import annotations

import copy
import errno
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from distroml.runtime.parallel.weights import (
    BuiltSource,
    CannotRecord,
    RecordedSource,
    WeightsMismatch,
    WeightsRefused,
    named_tensors,
    record,
)
from distroml.runtime.parallel.weights import source as sources
from distroml.runtime.parallel.weights.deferred import Deferred, deferred_of
from libs.runtime.tests.weights.models import make

SEED = 5


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def check(factory: Callable[[], nn.Module], small_bytes: int = 0) -> RecordedSource:
    """Names, values, layouts, ties, and the generator afterwards, are those of the real run."""
    torch.manual_seed(SEED)
    real = factory()
    state = torch.get_rng_state()
    blank, source = record(factory, SEED, small_bytes=small_bytes)
    assert isinstance(source, RecordedSource), source.reason
    assert torch.equal(torch.get_rng_state(), state)
    wanted, found = named_tensors(real), named_tensors(blank)
    assert list(source.names()) == list(wanted) == list(found)
    places = {id(tensor): name for name, tensor in wanted.items()}
    blanks = {id(tensor): name for name, tensor in found.items()}
    assert list(places.values()) == list(blanks.values())
    # Backwards: no tensor's value may depend on what was read before.
    for name in reversed(source.names()):
        tensor, empty = wanted[name], found[name]
        assert empty.is_meta, name
        assert (empty.shape, empty.dtype, empty.stride()) == (tensor.shape, tensor.dtype, tensor.stride()), name
        assert (type(empty), empty.requires_grad) == (type(tensor), tensor.requires_grad), name
        assert (source.shape(name), source.dtype(name)) == (tuple(tensor.shape), tensor.dtype), name
        assert torch.equal(bits(source.read(name)), bits(tensor)), name
        part = tuple(slice(size // 3, size) for size in tensor.shape)
        assert torch.equal(bits(source.read(name, part)), bits(tensor[part])), name
    assert torch.equal(torch.get_rng_state(), state)
    return source


class Everything(nn.Module):
    """What initialisations do: orthogonal, sparse, rejected draws, views, casts, numpy, values read."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.init.orthogonal_(nn.Parameter(torch.empty(40, 40)))
        self.b = nn.init.sparse_(nn.Parameter(torch.empty(40, 40)), 0.3)
        self.c = nn.Parameter(torch.randn(40, 40, generator=torch.Generator().manual_seed(4)) * 2.5)
        self.d = nn.init.trunc_normal_(nn.Parameter(torch.empty(40, 40)), std=0.02)
        if self.d.abs().max().item() > 0.01:
            self.e = nn.Parameter(self.d.detach() * 2)
        whole = torch.randn(3, 20, 20)
        self.f = nn.ParameterList([nn.Parameter(whole[i]) for i in range(3)])
        self.register_buffer("mask", torch.tril(torch.ones(64, 64)).bool().view(1, 1, 64, 64), persistent=False)
        with torch.no_grad():
            self.a[self.a > 0.1] = 7.0
            self.b[:, :3].normal_()
            self.c[3] = self.b[0]
        self.g = nn.Parameter(torch.from_numpy(self.c.detach().numpy() * 3))
        self.h = nn.Linear(30, 30).to(torch.bfloat16)
        self.i = nn.Linear(30, 30).double()
        self.j = copy.deepcopy(self.h)
        self.k = nn.utils.parametrizations.weight_norm(nn.Conv1d(8, 8, 3))
        self.register_buffer("drawn", torch.bernoulli(torch.full((200,), 0.3)))
        self.register_buffer("chosen", torch.randperm(300)[torch.rand(300) > 0.5])
        self.register_buffer("like", torch.rand_like(self.c))
        self.register_buffer("listed", torch.tensor(torch.rand(300)[:5].tolist()))
        self.aside = torch.arange(500) / 3
        self.last = nn.Linear(64, 64)
        self.last.weight.data = torch.full((64, 64), 0.25)


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(64, 64),
    "conv": lambda: nn.Conv2d(16, 16, 3),
    "embedding": lambda: nn.Embedding(100, 32, padding_idx=3),
    "lstm": lambda: nn.LSTM(16, 16, 2),
    "attention": lambda: nn.MultiheadAttention(32, 4),
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64), 2, enable_nested_tensor=False),
    "norm": lambda: nn.Sequential(nn.Conv2d(3, 300, 3), nn.BatchNorm2d(300)),
    "tied": make,
    "everything": Everything,
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("small_bytes", [0, 1000])
def test_modules_of_torch(name: str, small_bytes: int) -> None:
    check(PLAIN[name], small_bytes)


def test_the_example() -> None:
    from examples.gpt.model import GPT, ModelConfig

    check(lambda: GPT(ModelConfig()), 1000)


COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 64,
    "max_position_embeddings": 32,
}
PAIR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "vocab_size": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 1,
}
ZOO: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("AutoModelForCausalLM", COMMON),
    "qwen3": ("AutoModelForCausalLM", COMMON),
    "gemma2": ("AutoModelForCausalLM", COMMON),
    "mixtral": ("AutoModelForCausalLM", COMMON | {"num_local_experts": 4}),
    "gpt2": ("AutoModelForCausalLM", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 32}),
    "gptj": ("AutoModelForCausalLM", {"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 64, "rotary_dim": 4}),
    "bloom": ("AutoModelForCausalLM", {"hidden_size": 32, "n_layer": 1, "n_head": 4, "vocab_size": 64}),
    "mamba": ("AutoModelForCausalLM", {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 64}),
    "bert": ("AutoModelForMaskedLM", COMMON),
    "albert": ("AutoModelForMaskedLM", COMMON | {"embedding_size": 16}),
    "t5": ("AutoModelForSeq2SeqLM", {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "vocab_size": 64}),
    "bart": ("AutoModelForSeq2SeqLM", PAIR),
    "marian": ("AutoModelForSeq2SeqLM", PAIR),
    "whisper": ("AutoModelForSpeechSeq2Seq", PAIR),
    "vit": ("AutoModelForImageClassification", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}),
    "swin": ("AutoModelForImageClassification", {"embed_dim": 32, "depths": [1, 1], "num_heads": [2, 2]}),
    "resnet": ("AutoModelForImageClassification", {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8}),
}


@pytest.mark.parametrize("kind", ZOO)
def test_hugging_face_models(kind: str) -> None:
    auto, options = ZOO[kind]
    config = transformers.AutoConfig.for_model(kind, **options)
    check(lambda: getattr(transformers, auto).from_config(config))


def test_a_dtype_that_is_the_default_for_a_while() -> None:
    config = transformers.AutoConfig.for_model("llama", **COMMON)
    check(lambda: transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16))


def test_plain_attributes_have_their_values() -> None:
    blank, _ = record(Everything, SEED, small_bytes=0)
    assert torch.equal(blank.aside, torch.arange(500) / 3)


def test_reading_everything_costs_one_initialisation() -> None:
    """Counted, not timed: each random operation runs once per tensor that needs it."""
    drawn: list[int] = []

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(32, 32))
            nn.init.xavier_uniform_(self.weight)
            nn.init.normal_(self.weight)

    _, source = record(lambda: nn.Sequential(*(Layer() for _ in range(8))), SEED, small_bytes=0)

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if torch.Tag.nondeterministic_seeded in func.tags:
                drawn.append(args[0].numel())
            return func(*args, **(kwargs or {}))

    with Count():
        for name in source.names():
            source.read(name, (slice(0, 4),))
            source.read(name, (slice(4, 8),))
    assert sum(drawn) == 8 * 32 * 32


MEMORY = """
import resource
import torch
from torch import nn
from distroml.runtime.parallel.weights import record

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def factory():
    return nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(24)))

nn.Sequential(nn.Linear(2048, 2048))
record(lambda: nn.Linear(8, 8), 0, small_bytes=0)
before = peak_mb()
model, source = record(factory, 0)
kept = [source.read(name)[:64].clone() for name in source.names()]
source.close()
assert sum(p.nbytes for p in model.parameters()) > 400e6
print(peak_mb() - before)
"""


def test_a_model_of_400_mb_takes_no_400_mb() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=100, check=True)
    assert float(done.stdout) < 150


def on_a_thread() -> nn.Module:
    layer = nn.Linear(100, 100)
    thread = threading.Thread(target=lambda: layer.weight.data.zero_())
    thread.start()
    thread.join()
    return layer


KEPT: list[torch.Tensor] = []


def with_a_cache() -> nn.Module:
    layer = nn.Linear(100, 100)
    KEPT[:] = [layer.weight.detach() * 2]
    return layer


def with_a_view() -> nn.Module:
    layer = nn.Linear(100, 100)
    layer.first = layer.weight.detach()[0]
    return layer


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("factory", "why"),
    [
        (on_a_thread, "outside of the recording"),
        (with_a_cache, r"1 tensors, the first of shape \(100, 100\), are held outside"),
        (with_a_view, "is a view of a parameter"),
    ],
)
def test_what_cannot_be_put_off_is_built_for_real(factory: Callable[[], nn.Module], why: str) -> None:
    blank, source = record(factory, SEED, small_bytes=0)
    assert all(tensor.is_meta for tensor in named_tensors(blank).values())
    assert isinstance(source, BuiltSource)
    assert re.search(why, source.reason)
    assert "0 MB" in source.reason
    torch.manual_seed(SEED)
    for name, tensor in named_tensors(factory()).items():
        assert torch.equal(source.read(name), tensor)
    source.close()


def test_the_users_own_error_is_raised() -> None:
    def factory() -> nn.Module:
        nn.Linear(100, 100)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        record(factory, SEED)
    with pytest.raises(TypeError, match=r"must return a torch\.nn\.Module, got int"):
        record(lambda: 3, SEED)  # type: ignore[arg-type, return-value]


def test_two_parameters_over_one_memory_are_refused() -> None:
    def factory() -> nn.Module:
        model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30))
        model[1].weight.data = model[0].weight.data
        return model

    with pytest.raises(WeightsRefused, match=r"0\.weight and 1\.weight are two parameters over the same memory"):
        record(factory, SEED, small_bytes=0)


def test_unknown_names_are_refused_by_every_source() -> None:
    blank, source = record(make, SEED)
    built = BuiltSource(make, blank, "", sources.Turn())
    for one in (source, built, sources.LiveSource(make())):
        for ask in (one.shape, one.dtype, one.read):
            with pytest.raises(WeightsMismatch, match="nowhere is not among them"):
                ask("nowhere")


def test_one_process_at_a_time_builds(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.tempfile, "tempdir", str(tmp_path))
    blank, _ = record(make, SEED)
    source = BuiltSource(make, blank, "", sources.Turn())
    source.read("embed.weight")
    probe = (
        "import fcntl, sys\n"
        "try:\n"
        "    fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except BlockingIOError:\n"
        "    print('held')\n"
    )
    path = next(tmp_path.glob("distroml-build-*.lock"))

    def ask() -> str:
        return subprocess.run([sys.executable, "-c", probe, str(path)], capture_output=True, text=True).stdout.strip()

    assert ask() == "held"
    source.close()
    assert ask() == ""


@pytest.mark.parametrize("why", ["no locks", "no file"])
def test_who_cannot_lock_builds_all_the_same_and_says_so_once(
    why: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where the folder for what is temporary lies on a network file system that has no lock service."""

    def refused(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(sources.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sources.Turn, "_warned", False)
    if why == "no locks":
        monkeypatch.setattr(sources.fcntl, "flock", refused)
    else:
        (tmp_path / f"distroml-build-{os.getuid()}.lock").mkdir()
    blank, _ = record(make, SEED)
    source = BuiltSource(make, blank, "", sources.Turn())
    for _ in range(2):
        assert source.read("embed.weight").shape == blank.embed.weight.shape
        source.close()
    (told,) = caplog.messages
    assert "let TMPDIR name a folder on a local disk" in told
    assert sources.Turn._file is None


def test_torch_makes_deferred_tensors_as_we_need_them() -> None:
    """Private parts of torch: a subclass on `meta` that says `cpu`, shares storage, and may be set as data."""
    meta = torch.empty(3, 4, device="meta")
    deferred = deferred_of(meta)
    assert type(deferred) is Deferred
    assert deferred.device == torch.device("cpu")
    assert deferred.untyped_storage()._cdata == meta.untyped_storage()._cdata
    assert deferred.untyped_storage().data_ptr() == 0
    with pytest.raises(CannotRecord, match=r"aten.add.Tensor of tensors of shapes \[\(3, 4\)\]"):
        deferred + 1
