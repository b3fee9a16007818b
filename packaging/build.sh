#!/bin/bash
# Build the release binary so that it runs on Debian 11 and Ubuntu 20.04 (glibc 2.31), whatever this host has, and
# print its path. zig brings the old glibc's symbols; it is installed from the lock into target/, nowhere else.
#
# usage: packaging/build.sh [MANIFEST]      default: the Cargo.toml above this folder
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
manifest=$(realpath "${1:-$here/../Cargo.toml}")
glibc=2.31
target=${CARGO_TARGET_DIR:-$(dirname "$manifest")/target}
venv=$target/packaging-venv

case $(uname -m) in
x86_64) triple=x86_64-unknown-linux-gnu ;;
aarch64) triple=aarch64-unknown-linux-gnu ;;
*) echo "build.sh: no release build for $(uname -m); x86_64 and aarch64 have one" >&2 && exit 1 ;;
esac

say() { echo "build.sh: $*" >&2; }

# cargo-zigbuild, and zig.
"$here/venv.sh" "$here/requirements.txt" "$venv" --no-deps --only-binary :all:

# Caches stay in target/: this may run as root in somebody's checkout, or without a home.
export CARGO_ZIGBUILD_PYTHON_PATH=$venv/bin/python3 CARGO_ZIGBUILD_CACHE_DIR=$target/packaging-cache
export ZIG_GLOBAL_CACHE_DIR=$target/packaging-cache/zig CARGO_TARGET_DIR=$target
PATH=$venv/bin:$PATH cargo zigbuild --locked --release --manifest-path "$manifest" --target "$triple.$glibc" >&2

# Of that manifest's own package: the workspace has others, which are never built here.
name=$(cargo metadata --no-deps --format-version 1 --manifest-path "$manifest" |
    python3 -c 'import json, sys
own = next(p for p in json.load(sys.stdin)["packages"] if p["manifest_path"] == sys.argv[1])
print(next(t["name"] for t in own["targets"] if "bin" in t["kind"]))' "$manifest")
binary=$target/$triple/release/$name

# The promise of this script, looked at rather than believed.
needed=$(objdump -T "$binary" | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -Vu | tail -n 1)
if [ "$(printf '%s\n' "$needed" "$glibc" | sort -V | tail -n 1)" != "$glibc" ]; then
    say "$binary needs glibc $needed, and $glibc is what it must run on" && exit 1
fi
say "$binary needs glibc $needed"
echo "$binary"
