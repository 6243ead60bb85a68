#!/bin/bash
# For Harbor: lay the release that fixed it over the workspace, without its tests. Needs the network, or a pip that finds it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
/opt/env/bin/python -I -m pip download -q --no-cache-dir --no-deps --no-binary :all: --require-hashes \
    -r "$(dirname "$0")/truth.txt" -d "$work/truth"
mkdir "$work/tree"
tar -xzf "$work"/truth/*.tar.gz -C "$work/tree" --strip-components=1 --no-same-owner
(cd "$work/tree" && rm -rf h11/tests)
cp -a "$work/tree/." /workspace/
