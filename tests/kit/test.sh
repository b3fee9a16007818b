#!/bin/bash
# The checks. Ends by saying what each part has cost, and what did not run and why: silence means that all of it ran.
#
# usage: tests/kit/test.sh quick|test|all
#   quick  form, and the tests that need no machine
#   test   as quick, and stories about whole machines, but for those that nothing has changed for (tests/tiers)
#   all    everything there is; when it passes, the commit is noted in tests/tiers/full-pass
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

case ${1:-} in
quick | test | all) tier=$1 ;;
*) sed -n 's/^# usage: /usage: /p' "$0" >&2 && exit 2 ;;
esac

out=$PWD/target/tiers
tiers=$PWD/target/debug/tiers
export TIERS_ACCOUNTS=$out/now.tsv

# Run a part, and note its seconds and its processor seconds. In a shell of its own, or what ends beside it would be counted.
part() (
    name=$1 TIMEFORMAT=$'%R\t%U\t%S' status=0
    shift
    printf '\n== %s\n' "$name"
    { time "$@" 2>&3; } 3>&2 2> "$out/$name.time" || status=$?
    awk -v name="$name" -F '\t' '{ printf "part\t%s\t%.1f\t%.1f\n", name, $1, $2 + $3 }' "$out/$name.time" >> "$TIERS_ACCOUNTS"
    rm "$out/$name.time"
    exit $status
)

# Joined by `&&`, as bash heeds no `set -e` in what is asked for its status.
form() {
    cargo fmt --all --check &&
        shellcheck packaging/*.sh packaging/deb/build.sh packaging/deb/prerm tests/kit/*.sh tests/gpu/*.sh .ci/run &&
        packaging/handbook.sh build --strict --quiet --site-dir "$PWD/target/handbook" &&
        dependencies
}

dependencies() {
    if ! cargo deny --version > /dev/null 2>&1; then
        echo "SKIPPED: licences, advisories and bans of dependencies: cargo install --locked cargo-deny" >> "$out/left"
        return
    fi
    cargo deny --log-level error check bans licenses sources || return
    local said
    said=$(cargo deny --color never check advisories 2>&1) && return
    printf '%s\n' "$said" >&2
    # Only this failure is the network's and not ours.
    grep -q 'failed to fetch advisory database' <<< "$said" || return
    echo "SKIPPED: advisories of dependencies: their database cannot be fetched from here" >> "$out/left"
}

# The tests' programs, and what nextest has to know of them: so it need not ask cargo, whose lock clippy has by then.
compile() {
    cargo metadata --format-version 1 > "$out/metadata.json" &&
        nice cargo nextest list --workspace --list-type binaries-only --message-format json > "$out/binaries.json"
}

# Most tests write journals, which a disk is waited for; a tmpfs is none. Its user may not be who builds.
tmpfs() {
    local dir
    dir=$(mktemp -d /dev/shm/tiers-XXXXXX 2> /dev/null) || return 0
    if [ "$(stat --file-system --format %T "$dir")" = tmpfs ] && cp /bin/true "$dir" && "$dir/true" 2> /dev/null; then
        chmod 1777 "$dir"
        export TIERS_TMPFS=$dir
    else
        rm -r "$dir"
    fi
}

tests() {
    local host runner="$tiers account"
    # Disks and machines need root; only the test programs get it, so that target/ stays the developer's.
    [ "$(id -u)" = 0 ] || ! command -v sudo > /dev/null || runner="sudo --preserve-env $runner"
    host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    env "CARGO_TARGET_${host}_RUNNER=$runner" \
        nice cargo nextest run -E "$filter" --tool-config-file "tiers:$out/nextest.toml" \
        --binaries-metadata "$out/binaries.json" --cargo-metadata "$out/metadata.json"
}

cargo build --quiet -p tiers
filter=$("$tiers" plan "$tier")

clean_up() {
    local job
    for job in $(jobs -p); do kill -- "-$job" 2> /dev/null || true; done
    rm -rf "${TIERS_TMPFS:-/nothing}"
}
trap clean_up EXIT
# Beside the tests, most of which wait, goes on what computes. Stories wait for the package at its lock, so it comes first
# and all else is nice.
beside() {
    # In a process group of its own, so that all of it can be ended.
    set -m
    part "$@" > "$out/$1.log" 2>&1 &
    set +m
}
finished() {
    local status=0
    wait "$2" || status=$?
    [ $status = 0 ] || cat "$out/$1.log"
    return $status
}

if [ "$tier" != quick ]; then
    rm -rf target/debian
    exec 9> target/debian.lock
    flock 9
    beside package make --no-print-directory deb
    package=$!
    exec 9>&-
fi
part form form
part compile compile
beside clippy nice cargo clippy --quiet --workspace --all-targets -- -D warnings
clippy=$!
tmpfs
result=passed
part tests tests || result=failed
finished clippy "$clippy" || result=failed
[ "$tier" = quick ] || finished package "$package" || result=failed
"$tiers" report $result
[ $result = passed ]
[ "$tier" != all ] || "$tiers" passed
