#!/usr/bin/env bash
# Brings Python's tools into .venv. Needs Python 3.11 or newer with venv or pip, and nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*" >&2; }

find_python() {
    local name
    for name in ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    say "no Python 3.11 or newer was found; install one (Debian: apt install python3 python3-venv) or name it:"
    say "    make setup PYTHON=/path/to/python3"
    return 1
}

# A shim that only says "not installed" is no uv, and neither is one too old for dependency groups.
is_uv() { "$1" pip install --help 2>/dev/null | grep -q -- --group; }

find_uv() {
    local python=$1
    if is_uv uv; then
        command -v uv
    elif is_uv .tools/bin/uv; then
        echo .tools/bin/uv
    else
        say "uv is missing: fetching it into .tools"
        rm -rf .tools
        # pip where there is one (also beside a system Python that wants to stay as it is), else the one of a new venv.
        if "$python" -m pip --version >/dev/null 2>&1; then
            "$python" -m pip install --quiet --disable-pip-version-check --no-warn-script-location --root-user-action ignore --target .tools uv
        elif "$python" -m venv .tools/venv >/dev/null 2>&1; then
            .tools/venv/bin/pip install --quiet --disable-pip-version-check uv
            mkdir -p .tools/bin && ln -s ../venv/bin/uv .tools/bin/uv
        else
            say "$python has neither pip nor venv; install one of them (Debian: apt install python3-venv)"
            return 1
        fi
        echo .tools/bin/uv
    fi
}

python=$(find_python)
uv=$(find_uv "$python")
say "setting up .venv with $("$python" --version); the first time this fetches torch and takes a minute"
[ -x .venv/bin/python ] && .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    "$uv" venv --quiet --clear --python "$python" .venv
"$uv" pip install --quiet --python .venv/bin/python --editable '.[all]' --group dev --group proto
# The installation above is kept from an earlier time where only the kernels changed, and its warnings are quiet.
.venv/bin/python libs/runtime/distroml/runtime/compress/native/build.py
say "ready: .venv/bin/distroml"
