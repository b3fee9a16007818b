#!/bin/bash
# Make a Python environment from a lock, unless it is made from this very lock already.
#
# usage: packaging/venv.sh LOCK DIR [PIP_OPTION…]
set -euo pipefail

lock=$1 venv=$2
shift 2
# The copy of the lock is written last: without it the environment is not finished.
if ! cmp -s "$lock" "$venv/lock"; then
    rm -rf "$venv"
    python3 -m venv "$venv" || { echo "venv.sh: try: apt install python3-venv" >&2 && exit 1; }
    "$venv/bin/python3" -m pip install --quiet --disable-pip-version-check --require-hashes "$@" -r "$lock"
    cp "$lock" "$venv/lock"
fi
