#!/bin/bash
# Resolve every list of Python requirements anew, those of the product for every Python from 3.8 on, with the hash of every
# file. Cargo.lock is renewed beside them. What changed is for a person to read and for `make test` to prove.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=target/lock-venv
packaging/venv.sh assets/python/uv.txt "$venv"
for list in assets/python/{services,docs,uv,conda} packaging/requirements; do
    "$venv/bin/uv" pip compile --quiet --upgrade --universal --python-version 3.8 --generate-hashes \
        --no-header --no-annotate "$list.in" --output-file "$list.txt"
done
# What only tests use, on the host's Python.
"$venv/bin/uv" pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
    --no-header --no-annotate tests/lab/scanners.in --output-file tests/lab/scanners.txt
cargo update --quiet
git diff --stat -- assets/python packaging tests/lab Cargo.lock
