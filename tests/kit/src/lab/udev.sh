#!/bin/sh
# Stands in for udev, which does not run where /sys is read-only. Two duties:
#
# before file systems are mounted (`udev first`), show this machine its own disks and no others: /sys lists
# every block device of the host, so three directories of links in it are covered by shorter ones;
#
# then, for as long as the machine runs (`udev watch`), keep /dev/disk/azure, by-uuid and by-label true. A
# device is looked at again when something was written to it, within a third of a second.
set -eu
# One line a disk: its LUN and its device, as in `0 loop3`.
disks=/usr/lib/echoes-lab/disks
[ -e $disks ] || disks=/dev/null

# Its partitions too.
nodes() {
    for node in /dev/"$1" /dev/"$1"p*; do
        [ ! -b "$node" ] || echo "${node#/dev/}"
    done
}

cover() {
    mkdir -p /run/echoes-lab/block /run/echoes-lab/class /run/echoes-lab/dev
    while read -r _ disk; do
        cp -P /sys/block/"$disk" /run/echoes-lab/block/
        for node in $(nodes "$disk"); do
            cp -P /sys/class/block/"$node" /run/echoes-lab/class/
            cp -P /sys/dev/block/"$(cat /sys/class/block/"$node"/dev)" /run/echoes-lab/dev/
        done
    done <$disks
    mount --bind /run/echoes-lab/block /sys/block
    mount --bind /run/echoes-lab/class /sys/class/block
    mount --bind /run/echoes-lab/dev /sys/dev/block
}

# What blkid finds now, as udev would note it: links, and the database that lsblk reads.
relink() {
    mkdir -p /dev/disk/azure/scsi1 /dev/disk/by-uuid /dev/disk/by-label /run/udev/data
    seen=
    while read -r lun disk; do
        for node in $(nodes "$disk"); do
            part=${node#"$disk"}
            link=/dev/disk/azure/scsi1/lun$lun${part:+-part${part#p}}
            [ -e "$link" ] || ln -s ../../../"$node" "$link"
            # Asked while somebody else mounts or writes, it may find nothing: a link is not taken away for that.
            found=$(blkid -p -o udev /dev/"$node" || { sleep 0.2 && blkid -p -o udev /dev/"$node"; } || true)
            {
                echo I:1
                [ -z "$found" ] || echo "$found" | sed s/^/E:/
            } >/run/udev/data/b"$(cat /sys/class/block/"$node"/dev)"
            for by in uuid label; do
                value=$(echo "$found" | sed -n "s/^ID_FS_$(echo $by | tr a-z A-Z)_ENC=//p")
                [ -n "$value" ] || continue
                seen="$seen by-$by/$value"
                [ "$(readlink /dev/disk/by-$by/"$value")" = ../../"$node" ] ||
                    ln -sfn ../../"$node" /dev/disk/by-$by/"$value"
            done
        done
    done <$disks
    for link in /dev/disk/by-uuid/* /dev/disk/by-label/*; do
        [ -L "$link" ] || continue
        case " $seen " in *" ${link#/dev/disk/} "*) ;; *) rm -f "$link" ;; esac
    done
}

# How much was written so far, to all of them: the fifth to seventh numbers.
writes() {
    now=
    while read -r _ disk; do
        read -r _ _ _ _ ios _ sectors _ </sys/class/block/"$disk"/stat || continue
        now="$now $ios/$sectors"
    done <$disks
}

case $1 in
first)
    cover
    relink
    ;;
watch)
    [ $disks != /dev/null ] || exit 0
    before=
    while writes; do
        if [ "$now" != "$before" ]; then
            before=$now
            relink
        fi
        sleep 0.3
    done
    ;;
esac
