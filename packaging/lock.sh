#!/bin/bash
# Resolve every list of Python requirements anew, for every Python from 3.8 on, with the hash of every file. Cargo.lock
# is renewed beside them. What changed is for a person to read and for `make test` to prove.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=target/lock-venv
if ! cmp -s assets/python/uv.txt "$venv/lock"; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/python3" -m pip install --quiet --disable-pip-version-check --require-hashes -r assets/python/uv.txt
    cp assets/python/uv.txt "$venv/lock"
fi
for list in assets/python/{services,docs,uv} packaging/requirements; do
    "$venv/bin/uv" pip compile --quiet --upgrade --universal --python-version 3.8 --generate-hashes \
        --no-header --no-annotate "$list.in" --output-file "$list.txt"
done
cargo update --quiet
git diff --stat -- assets/python packaging Cargo.lock
