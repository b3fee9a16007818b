#!/bin/bash
# Every check there is, quick ones first. Ends by saying what was skipped and why: silence means that all of it ran.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

skipped=()
step() { printf '\n== %s\n' "$*"; }

# Disks and machines need root; only the test programs get it, so that target/ stays the developer's.
if [ "$(id -u)" != 0 ] && command -v sudo > /dev/null; then
    host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    export "CARGO_TARGET_${host}_RUNNER=sudo --preserve-env"
fi

# What a passing test skipped is in its output, which is kept in the report alone.
keep_skips() {
    local line
    while read -r line; do skipped+=("$line"); done \
        < <(grep -oh 'SKIPPED[: ][^<]*' target/nextest/default/junit.xml 2> /dev/null | sort -u |
            sed "s/&quot;/\"/g; s/&apos;/'/g; s/&lt;/</g; s/&gt;/>/g; s/&amp;/\&/g")
}

step "form"
cargo fmt --all --check
shellcheck packaging/*.sh packaging/deb/build.sh packaging/deb/prerm tests/kit/*.sh tests/gpu/*.sh .ci/run
cargo clippy --quiet --workspace --all-targets -- -D warnings
packaging/handbook.sh build --strict --quiet --site-dir "$PWD/target/handbook"
if cargo deny --version > /dev/null 2>&1; then
    cargo deny --log-level error check bans licenses sources
    said=$(cargo deny --color never check advisories 2>&1) || {
        printf '%s\n' "$said" >&2
        # Only this failure is the network's and not ours.
        grep -q 'failed to fetch advisory database' <<< "$said" || exit 1
        skipped+=("SKIPPED: advisories of dependencies: their database cannot be fetched from here")
    }
else
    skipped+=("SKIPPED: licences, advisories and bans of dependencies: cargo install --locked cargo-deny")
fi

step "quick tests"
cargo nextest run -E 'not binary(lab)'
keep_skips

step "package"
make --no-print-directory deb

step "lab: whole machines"
# Builds the first machine's base tree, or says why no machine can be booted here.
said=$(mktemp)
trap 'rm -f "$said"' EXIT
if cargo run --quiet --example lab -- base 12 2> >(tee "$said" >&2); then
    cargo nextest run -E 'binary(lab)'
    keep_skips
elif grep -q 'cannot boot machines here' "$said"; then
    skipped+=("SKIPPED: every story about whole machines: $(tr '\n' ' ' < "$said")")
else
    exit 1
fi

if [ ${#skipped[@]} = 0 ]; then
    step "all of it ran, and all of it passed"
else
    step "passed, but NOT ALL OF IT RAN"
    printf '%s\n' "${skipped[@]}"
fi
