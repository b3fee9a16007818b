#!/bin/bash
# Install what building, testing and the demo need, and nothing when it is all there.
#
# usage: tests/kit/tools.sh build|demo|bench|test
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

build=(gcc:gcc objdump:binutils make:make git:git python3:python3 dpkg-deb:dpkg)
lab=(mmdebstrap:mmdebstrap systemd-nspawn:systemd-container nft:nftables ip:iproute2 losetup:mount nsenter:util-linux
    mkfs.ext4:e2fsprogs)
# What the disk and certificate tests compare us with, and who answers where a test goes to a machine over ssh.
test=(shellcheck:shellcheck openssl:openssl mkfs.xfs:xfsprogs sfdisk:fdisk pvcreate:lvm2 sshd:openssh-server)
# What an experiment's way to its machine is timed beside. az is fetched by the bench itself, with pip.
bench=(sshd:openssh-server ssh:openssh-client rsync:rsync tc:iproute2 setpriv:util-linux)

case ${1:-} in
build) wanted=("${build[@]}") ;;
demo) wanted=("${build[@]}" "${lab[@]}") ;;
bench) wanted=("${build[@]}" "${lab[@]}" "${bench[@]}") ;;
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
    if [ "$1" = test ] && [[ $(apt-cache policy chromium) =~ 'Candidate: '[0-9] ]]; then missing+=(chromium); fi
    case " ${missing[*]} " in
    *" openssh-server "*)
        # Debian's own sign that sshd shall not run by itself: tests start one of their own, on loopback.
        "${root[@]}" install -D -m 644 /dev/null /etc/ssh/sshd_not_to_be_run
        ;;
    esac
    "${apt[@]}" install --yes --no-install-recommends "${missing[@]}"
fi

# Pebble and Caddy, the authorities that tests ask for certificates. Only Debian's newest has all of Pebble, and only the
# programs are wanted: so they are unpacked beside the build, from the host's own mirror, and nothing else changes here.
fetch_authorities() {
    local here=$PWD/target/tools mirror apt
    [ -x "$here/usr/bin/pebble" ] && [ -x "$here/usr/bin/caddy" ] && return
    # shellcheck disable=SC2016
    mirror=$(apt-get indextargets --format '$(RELEASE) $(SITE)' |
        awk '$1 ~ /^(bullseye|bookworm|trixie|forky|sid|stable|testing|unstable)$/ { print $2; exit }')
    [ -n "$mirror" ] || return
    apt=$here/apt
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/preferences.d"
    touch "$apt/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" > "$apt/sources.list"
    cat > "$apt/conf" << END
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::preferencesparts "$apt/preferences.d";
Dir::State::lists "$apt/lists";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
APT::Sandbox::User "";
END
    (
        cd "$here"
        export APT_CONFIG=$apt/conf
        apt-get --quiet=2 update
        for name in pebble caddy; do
            apt-get --quiet=2 download "$name" && dpkg-deb --extract "$name"_*.deb .
        done
    ) || echo "tools.sh: pebble or caddy cannot be fetched from here; tests that need one say so" >&2
    rm -rf "$apt" "$here"/*.deb
}
case $1 in bench | test) fetch_authorities ;; esac

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
