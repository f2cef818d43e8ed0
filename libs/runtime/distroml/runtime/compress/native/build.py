"""Builds the kernels once, at installation: `python build.py` in a checkout, and hatch's hook for wheels.

Needs the standard library and a compiler of C++17, `$CXX` or the first found of c++, g++ and clang++. Where there is
none, or it fails, `BuildFailed` says so, no old library stays, and codecs take their slower path.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIBRARY = HERE / "kernels.so"
SOURCES = ("abi.cpp", "levels.cpp", "kernels.h", "blocks.inc", "lowrank.inc")
TIMEOUT_S = 300

# Fused multiply-add would round differently than the definition in torch; the other flags change no result.
COMMON = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-exceptions",
    "-fno-rtti",
    "-Wno-psabi",
)
# One table of kernels per level, each for processors that have what its flags say; the loader asks the processor.
GENERIC = {"kGeneric": ()}
X86 = {
    **GENERIC,
    "kAvx2": ("-mavx2",),
    "kAvx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
}

SLOWER = (
    "the kernels of gradient compression were not built, and compression will work by slower code; for the fast one "
    "install a compiler of C++17 (Debian: apt install g++) and install distroml again (in a checkout: make setup)"
)


class BuildFailed(Exception):
    """There is no library; the message says why and what to do."""


def sources_hash() -> str:
    """What a library must have been built from to be used."""
    found = hashlib.sha256()
    for name in (*SOURCES, Path(__file__).name):
        found.update((HERE / name).read_bytes())
    return found.hexdigest()[:16]


def compiler() -> list[str]:
    """The command of the compiler; raises `BuildFailed` where there is none."""
    if named := shlex.split(os.environ.get("CXX", "")):
        return named
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise BuildFailed("no C++ compiler was found (c++, g++, clang++, or $CXX)")


def run(command: list[str]) -> None:
    """Run a compiler; raises `BuildFailed` with the end of what it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildFailed(f"the C++ compiler {command[0]} could not be run: {error}") from error
    if done.returncode:
        raise BuildFailed(f"the C++ compiler {command[0]} failed: {done.stderr.strip()[-500:] or 'it says nothing'}")


def build(library: Path = LIBRARY) -> Path:
    """Compile and link `library`, in place of any old one; raises `BuildFailed`."""
    try:
        library.unlink(missing_ok=True)
        return _built(library, compiler())
    except OSError as error:
        raise BuildFailed(f"{library} could not be written: {error}") from error


def _built(library: Path, cxx: list[str]) -> Path:
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    defines = [f'-DDISTROML_SOURCES="{sources_hash()}"', *(["-DDISTROML_X86"] if x86 else [])]
    with tempfile.TemporaryDirectory() as folder:
        objects: list[str] = []
        for level, flags in (X86 if x86 else GENERIC).items():
            objects.append(str(Path(folder) / f"{level}.o"))
            run([*cxx, *COMMON, *flags, f"-DDISTROML_LEVEL={level}", "-c", str(HERE / "levels.cpp"), "-o", objects[-1]])
        objects.append(str(Path(folder) / "abi.o"))
        run([*cxx, *COMMON, *defines, "-c", str(HERE / "abi.cpp"), "-o", objects[-1]])
        linked = Path(folder) / "kernels.so"
        run([*cxx, "-shared", *objects, "-o", str(linked)])
        # Whole or not at all, also for a process that loads it at this moment.
        beside = library.with_name(f"{library.name}.{os.getpid()}")
        shutil.copyfile(linked, beside)
        beside.replace(library)
    return library


def main() -> int:
    """Build unless it is built; a failure is a warning, for everything works without."""
    try:
        if not LIBRARY.exists() or sources_hash().encode() not in LIBRARY.read_bytes():
            build()
    except BuildFailed as error:
        print(f"warning: {SLOWER}\n{error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
