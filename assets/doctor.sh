#!/bin/sh
# What `gpu doctor --live` runs on a machine that was had for it: what comes home again must be what was sent.
set -eu
echo "on $(uname -srm), with $(nproc) processors"
nvidia-smi -L 2> /dev/null || echo "there is no GPU"
printf '%s\n' "$1" > "$ECHOES_OUT/answer.txt"
