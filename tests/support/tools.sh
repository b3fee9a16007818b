#!/bin/bash
# Install what building, testing and the demo need, and nothing when it is all there.
#
# usage: tests/support/tools.sh build|demo|test
set -euo pipefail

build=(gcc:gcc objdump:binutils make:make git:git python3:python3 dpkg-deb:dpkg)
lab=(mmdebstrap:mmdebstrap systemd-nspawn:systemd-container nft:nftables ip:iproute2 losetup:mount nsenter:util-linux
    mkfs.ext4:e2fsprogs)
# What the disk and certificate tests compare us with.
test=(shellcheck:shellcheck openssl:openssl mkfs.xfs:xfsprogs sfdisk:fdisk pvcreate:lvm2)

case ${1:-} in
build) wanted=("${build[@]}") ;;
demo) wanted=("${build[@]}" "${lab[@]}") ;;
test) wanted=("${build[@]}" "${lab[@]}" "${test[@]}") ;;
*) sed -n 's/^# usage: /usage: /p' "$0" >&2 && exit 2 ;;
esac

PATH=$PATH:/usr/sbin:/sbin
missing=()
for pair in "${wanted[@]}"; do
    command -v "${pair%%:*}" > /dev/null || missing+=("${pair##*:}")
done
# Not programs, so asked for by their files.
python3 -c 'import ensurepip' 2> /dev/null || missing+=(python3-venv)
[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
if [ "$1" != build ]; then
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring)
fi

if [ ${#missing[@]} != 0 ]; then
    root=()
    [ "$(id -u)" = 0 ] || root=(sudo)
    if [ ${#root[@]} != 0 ] && ! command -v sudo > /dev/null; then
        echo "tools.sh: ${missing[*]}: missing, and only root can install them" >&2 && exit 1
    fi
    echo "tools.sh: installing ${missing[*]}" >&2
    # None of these shall start a service here; and a developer's apt may be older than its lists.
    apt=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 --quiet)
    "${apt[@]}" update
    # Ubuntu has no package of it; without it, what would look at pages says that it is skipped.
    if [ "$1" = test ] && apt-cache policy chromium | grep -q 'Candidate: [0-9]'; then missing+=(chromium); fi
    "${apt[@]}" install --yes --no-install-recommends "${missing[@]}"
fi

if ! command -v cargo > /dev/null; then
    echo "tools.sh: there is no cargo; install Rust 1.90 or later with rustup, then run this again" >&2 && exit 1
fi
if [ "$1" = test ]; then
    for component in fmt clippy; do
        cargo "$component" --version > /dev/null 2>&1 || rustup component add "${component/fmt/rustfmt}"
    done
    # Each test in a process of its own, with a time limit, and the lab's no more than two at once.
    cargo nextest --version > /dev/null 2>&1 || cargo install --locked cargo-nextest
fi
