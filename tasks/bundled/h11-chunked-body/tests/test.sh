#!/bin/bash
# For Harbor. Always leaves a reward: 1 if every listed test passes with the ground truth's tests in place, else 0.
reward=0
mkdir -p /logs/verifier
env=$(mktemp -d)
if python3 -I -m venv "$env" &&
    "$env/bin/python" -I -m pip install -q --no-cache-dir --only-binary :all: --require-hashes -r /tests/requirements.txt &&
    "$env/bin/python" -I -m pip download -q --no-cache-dir --no-deps --no-binary :all: --require-hashes -r /tests/truth.txt -d "$env/truth" &&
    mkdir "$env/tree" && tar -xzf "$env"/truth/*.tar.gz -C "$env/tree" --strip-components=1 --no-same-owner &&
    "$env/bin/python" -I -B /tests/judge.py "$env/tree" /workspace; then
    reward=1
fi
echo "$reward" > /logs/verifier/reward.txt
