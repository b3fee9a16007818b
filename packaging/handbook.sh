#!/bin/bash
# Run MkDocs on the manual, in the locked environment that `install` uses for it too.
#
# usage: packaging/handbook.sh build|serve [OPTION…]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=target/handbook-venv
packaging/venv.sh assets/python/docs.txt "$venv"
exec "$venv/bin/mkdocs" "$@" --config-file assets/handbook/mkdocs.yml
