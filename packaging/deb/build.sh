#!/bin/bash
# Put the binary into a Debian package and print the package's path. Plain dpkg-deb: no debhelper, no root, the same
# bytes each time. The package starts nothing and installs nothing: `echoes-appliance install` does, when asked to.
#
# usage: packaging/deb/build.sh BINARY OUTDIR
set -euo pipefail

if [ $# != 2 ]; then
    sed -n 's/^# usage: /usage: /p' "$0" >&2 && exit 2
fi
binary=$1 out=$2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$here/../..

# The program says itself which version it is.
version=$("$binary" --version | sed -n 's/^echoes-appliance \([0-9][0-9A-Za-z.+~-]*\)$/\1/p')
if [ -z "$version" ]; then
    echo "deb/build.sh: $binary --version does not answer as echoes-appliance would" >&2 && exit 1
fi
architecture=$(dpkg --print-architecture)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$top" log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH

umask 022
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
chmod 755 "$tree"
doc=$tree/usr/share/doc/echoes-appliance

install -D -m 755 "$binary" "$tree/usr/bin/echoes-appliance"
install -D -m 644 "$here/copyright" "$doc/copyright"
install -D -m 644 "$top/README.md" "$doc/README.md"
install -D -m 644 "$top/CHANGELOG.md" "$doc/NEWS.md"
install -D -m 644 "$top/assets/config.toml" "$doc/examples/config.toml"
install -D -m 755 "$here/prerm" "$tree/DEBIAN/prerm"
gzip --best --no-name "$doc/NEWS.md"

# Debian wants its own form; what changed is told once, in NEWS.md.
gzip --best --no-name > "$doc/changelog.gz" <<END
echoes-appliance ($version) unstable; urgency=medium

  * What changed is in NEWS.md.gz, beside this file.

 -- $(sed -n 's/^Maintainer: //p' "$here/control")  $(date --utc --rfc-email --date="@$SOURCE_DATE_EPOCH")
END

size=$(du --summarize --apparent-size --block-size=1K "$tree/usr" | cut -f 1)
sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@SIZE@/$size/" \
    "$here/control" > "$tree/DEBIAN/control"
(cd "$tree" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum > DEBIAN/md5sums)
find "$tree" -newermt "@$SOURCE_DATE_EPOCH" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

mkdir -p "$out"
package=$(realpath "$out")/echoes-appliance_${version}_$architecture.deb
# xz: Ubuntu's dpkg-deb would take zstd, which Debian 11 cannot read.
dpkg-deb --root-owner-group -Zxz --build "$tree" "$package" >&2
echo "$package"
