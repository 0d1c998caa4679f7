#!/bin/sh
# In the image's second stage: /out/NAME is the whole file system of the image NAME: programs, the libraries that they name, and no more.
# Every file has the same owner, mode and time in every build.
set -eu
out=/out

# rootfs NAME PROGRAM…: programs in /usr/bin, their libraries where the loader looks for them.
rootfs() {
    root=$out/$1
    shift
    mkdir -p "$root/etc/ssl/certs" "$root/usr/bin" "$root/tmp"
    for program in "$@"; do
        install -m 755 "$program" "$root/usr/bin/"
        # `name => /path (address)`, and the loader itself as `/path (address)`.
        ldd "$program" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) (.*/\1/p' | while read -r library; do
            mkdir -p "$root$(dirname "$library")"
            cp -L "$library" "$root$library"
        done
    done
    echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
    echo 'flexnpu:x:65532:65532::/:/none' >"$root/etc/passwd"
    echo 'flexnpu:x:65532:' >"$root/etc/group"
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    chmod 1777 "$root/tmp"
}

if [ ! -s /etc/ssl/certs/ca-certificates.crt ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ca-certificates >/dev/null
fi
case $1 in
    programs)
        cd /programs
        rootfs libs vnpu libvnpu_interposer.so
        rootfs vnpu-daemon vnpu-daemon vnpu
        rootfs engine engine vnpu
        rootfs gateway gateway vnpu
        rootfs loadgen loadgen
        mkdir -p "$out/engine/models" "$out/loadgen/traces"
        cp -r /src/models/tiny-qwen2 "$out/engine/models/"
        cp /src/loadgen/data/azure_*_excerpt.csv /src/loadgen/data/mooncake_*_excerpt.jsonl "$out/loadgen/traces/"
        ;;
    prometheus)
        apt-get update -qq
        cd /tmp
        apt-get download -qq -o APT::Sandbox::User=root prometheus
        dpkg-deb -x prometheus_*.deb /tmp/prometheus
        rootfs prometheus /tmp/prometheus/usr/bin/prometheus /tmp/prometheus/usr/bin/promtool
        # Where the image of its makers has them.
        mv "$out/prometheus/usr/bin" "$out/prometheus/bin"
        # Below a directory of its own: the time of what is copied is kept, that of what it is copied into is not.
        mkdir -p "$out/prometheus-data/prometheus"
        ;;
esac
find "$out" -type d -exec chmod u=rwx,go=rx {} +
find "$out" -name tmp -type d -exec chmod 1777 {} +
find "$out" -type f -exec chmod u=rwX,go=rX {} +
find "$out" -exec touch -h -d "@${SOURCE_DATE_EPOCH:-0}" {} +
