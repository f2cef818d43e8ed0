"""The configuration file as one checked value."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from model import ModelConfig

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How to train. `global_batch` counts windows over all workers."""

    steps: int = 240
    global_batch: int = 16
    learning_rate: float = 2e-3
    warmup_steps: int = 20
    final_learning_rate: float = 2e-4
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    checkpoint_every: int = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """How much of the held-out text to score."""

    windows: int = 256
    global_batch: int = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """The text to generate at the end."""

    prompt: str = "def "
    length: int = 400
    temperature: float = 0.7


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Everything that decides what the training computes."""

    seed: int = 1337
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)


def _section(kind: type[T], values: Any, where: str) -> T:
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a table, got {values!r}")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(fields)):
        raise ValueError(f"{where} has unknown entries {', '.join(unknown)}; known: {', '.join(fields)}")
    return kind(**values)


def read_config(path: Path) -> Config:
    """Read a TOML file; raises `ValueError` that names what is wrong in it."""
    try:
        document = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is no TOML: {error}") from None
    sections: dict[str, type] = {
        "model": ModelConfig,
        "training": TrainingConfig,
        "evaluation": EvaluationConfig,
        "sample": SampleConfig,
    }
    values: dict[str, Any] = {
        name: _section(sections[name], value, f"{path}: [{name}]") if name in sections else value
        for name, value in document.items()
    }
    return _section(Config, values, str(path))
