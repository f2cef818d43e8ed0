#!/usr/bin/env bash
# Writes constraints.txt anew: which version of every package images are built with. `make pins` runs it.
set -euo pipefail
cd "$(dirname "$0")/../.."
uv=$(command -v uv || echo .tools/bin/uv)
{
    echo "# Every package of our images, at one version, so that an image built later is the same. \`make pins\` writes it."
    echo hatchling | "$uv" pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate \
        --extra services --extra stack --extra dashboard --extra cli --extra torch --extra hf pyproject.toml -
} > deploy/docker/constraints.new
mv deploy/docker/constraints.new deploy/docker/constraints.txt
