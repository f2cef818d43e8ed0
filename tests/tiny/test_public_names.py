"""What the packages offer is what they say they offer."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import pytest

ROOTS = [
    "distroml.bundle",
    "distroml.events",
    "distroml.eventstore",
    "distroml.manifest",
    "distroml.objectstore",
    "distroml.observability",
    "distroml.planner",
    "distroml.rpc",
    "distroml.statestore",
    "distroml.workerlink",
]


@pytest.mark.parametrize("root", ROOTS)
def test_every_public_name_is_there_and_in_order(root: str) -> None:
    module = import_module(root)
    names: list[str] = module.__all__
    assert len(names) == len(set(names))
    # As ruff sorts them: constants, classes, functions.
    kinds = [sorted(group) for group in _grouped(names)]
    assert names == [name for group in kinds for name in group]
    assert [name for name in names if not hasattr(module, name)] == []


def _grouped(names: list[str]) -> tuple[list[str], list[str], list[str]]:
    constants = [name for name in names if name.isupper()]
    classes = [name for name in names if name[0].isupper() and not name.isupper()]
    return constants, classes, [name for name in names if not name[0].isupper()]


@pytest.mark.parametrize("root", ROOTS)
def test_nothing_else_is_visible(root: str) -> None:
    """What a package's root imports for itself has an underscore or stands in `__all__`."""
    module = import_module(root)
    visible = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and name not in ("annotations", "TYPE_CHECKING")
    }
    assert visible - set(module.__all__) == set()
