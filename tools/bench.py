"""Lists the benchmarks and runs them one after the other: `python tools/bench.py [--full] [NAME...]`.

Every file of `benchmarks/` is a program of its own whose text says what it measures and what it must reach. With
`--quick`, which each of them understands, it takes seconds and its figures are rough; `--full` leaves that away.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


def main() -> int:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="which; all by default")
    parser.add_argument("--full", action="store_true", help="run as long as good figures need")
    options = parser.parse_args()
    found = {path.stem: path for path in sorted(FOLDER.glob("*.py")) if not path.stem.startswith("_")}
    if unknown := [name for name in options.names if name not in found]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(found)}")
    for name, path in found.items():
        print(f"  {name:<22} {(ast.get_docstring(ast.parse(path.read_text())) or '').partition(chr(10))[0]}")
    failed: list[str] = []
    for name in options.names or found:
        command = [sys.executable, str(found[name]), *([] if options.full else ["--quick"])]
        print(f"\n== {name}: {' '.join(command)}", flush=True)
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
