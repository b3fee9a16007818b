# Runs one machine until it is switched off: the outer shell of systemd-nspawn, in a mount namespace of its own.
# Arguments: the lab's directory, the machine's cgroup below the root of cgroup2, its tree, then nspawn's own.
set -eu
lab=$1 group=/sys/fs/cgroup$2 root=$3
shift 3

# The copies that this namespace has of other machines' trees would keep those busy after their end.
while read -r _ at type _; do
    case $type:$at in
    "overlay:$root") ;;
    "overlay:$lab"/machines/*/root) umount --lazy "$at" ;;
    esac
done </proc/self/mounts

# nspawn keeps notes in here, and the host may have no systemd of its own.
mkdir -p /run/systemd
mount -t tmpfs tmpfs /run/systemd
# systemd since 256 refuses to boot on anything else. Where the host has controllers in the old hierarchies,
# memory and process limits are without effect in machines.
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo 0 >"$group/launch/cgroup.procs"

while :; do
    find "$group/boot" -mindepth 1 -depth -type d -exec rmdir {} +
    code=0
    (
        echo 0 >"$group/boot/cgroup.procs"
        # /tmp is what the release makes of it: on disk in 11 and 12, a tmpfs in 13.
        SYSTEMD_NSPAWN_TMPFS_TMP=0 exec systemd-nspawn "$@"
    ) || code=$?
    # 133 is how nspawn says that the machine asked for a reboot.
    [ "$code" = 133 ] || exit "$code"
done
