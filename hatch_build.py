"""What hatch does beside packing: put the demo's example into the wheel, and the compiled kernels of compression."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = "libs/runtime/distroml/runtime/compress/native"


# What `distroml demo` trains, and where it looks for it where there is no tree around it.
EXAMPLE, PACKED_EXAMPLE = "examples/gpt", "distroml/cli/examples/gpt"


class KernelsHook(BuildHookInterface[Any]):
    """A wheel with kernels is one for this platform; without a compiler it is pure, and a warning says so."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build in place: an editable installation loads the library from there, a wheel packs it."""
        if version == "standard":
            build_data["force_include"][str(Path(self.root, EXAMPLE))] = PACKED_EXAMPLE
        builder = load(Path(self.root, NATIVE, "build.py"))
        try:
            builder.build()
        except builder.BuildFailed as error:
            self.app.display_warning(f"{builder.SLOWER}\n{error}")
            return
        build_data["artifacts"].append(f"{NATIVE}/{builder.LIBRARY.name}")
        if version == "standard":
            # It uses no part of Python's own interface: any Python 3 of this platform can load it.
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data.update(pure_python=False, tag=f"py3-none-{platform}")


def load(path: Path) -> ModuleType:
    """The module at `path`: what is being built cannot be imported yet."""
    spec = importlib.util.spec_from_file_location("distroml_kernels_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
