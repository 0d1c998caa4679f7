#!/bin/sh
# Makes the base image where no registry can be reached: Debian bookworm, by debootstrap, from a mirror of Debian.
#   docker/base.sh [IMAGE]        flexnpu-base if left out
# MIRROR names another mirror, SNAPSHOT a moment of it that never changes (as in https://snapshot.debian.org/archive/debian/20251115T000000Z).
# The same packages give the same image, byte for byte.
set -eu
image=${1:-flexnpu-base}
mirror=${SNAPSHOT:-${MIRROR:-http://deb.debian.org/debian}}

if [ "$(id -u)" != 0 ]; then
    echo "docker/base.sh: debootstrap needs root: sudo docker/base.sh" >&2
    exit 1
fi
if ! command -v debootstrap >/dev/null 2>&1; then
    echo "docker/base.sh: missing: debootstrap. Install it: apt-get install -y debootstrap" >&2
    exit 1
fi
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM
log=$dir/log
if ! debootstrap --variant=minbase --include=ca-certificates bookworm "$dir/root" "$mirror" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    exit 1
fi
cd "$dir/root"
# What differs from one run to the next, and what no image needs.
rm -rf var/cache/apt/* var/cache/ldconfig/* var/lib/apt/lists/* var/log/* tmp/* run/* etc/machine-id etc/hostname etc/resolv.conf \
    dev/* proc/* sys/*
rm -f etc/shadow- etc/passwd- etc/group- etc/gshadow-
sed -i -E 's/^([^:]*:[^:]*:)[0-9]+/\11/' etc/shadow
tar --sort=name --mtime=@0 --clamp-mtime --owner=root:0 --group=root:0 --numeric-owner -c . |
    docker import --change 'CMD ["/bin/sh"]' - "$image" >/dev/null
echo "$image"
