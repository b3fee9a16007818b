#!/bin/sh
# What no installer can avoid: the same packages, and the same environments from the same locks.
#
# usage: bare.sh SERVICES_LOCK DOCS_LOCK
set -eu
export DEBIAN_FRONTEND=noninteractive UV_NO_PROGRESS=1 UV_LINK_MODE=hardlink
apt-get -qq -y -o Dpkg::Options::=--force-confold install --no-install-recommends ca-certificates nginx python3-venv
. /root/uv.sh
python3 -m venv /opt/bare/uv
/opt/bare/uv/bin/pip install --quiet --no-cache-dir uv
for lock in "$@"; do
    env=/opt/bare/$(basename "$lock" .txt)
    /opt/bare/uv/bin/uv venv --quiet --no-project --python /usr/bin/python3 "$env"
    /opt/bare/uv/bin/uv pip install --quiet --python "$env/bin/python" --require-hashes --no-build --no-deps \
        --compile-bytecode -r "$lock"
done
