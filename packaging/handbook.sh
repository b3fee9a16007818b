#!/bin/bash
# Run MkDocs on the manual, in the locked environment that `install` uses for it too.
#
# usage: packaging/handbook.sh build|serve [OPTION…]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=target/handbook-venv
if ! cmp -s assets/python/docs.txt "$venv/lock"; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/python3" -m pip install --quiet --disable-pip-version-check --require-hashes -r assets/python/docs.txt
    cp assets/python/docs.txt "$venv/lock"
fi
exec "$venv/bin/mkdocs" "$@" --config-file assets/handbook/mkdocs.yml
