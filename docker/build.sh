#!/bin/sh
# Builds the images of the stack and makes its keys. With Docker and nothing else:
#   docker/build.sh
#   docker compose -f docker/compose.yaml up -d
#
# docker/build.sh [--binaries DIR]
#   --binaries DIR   take the programs from DIR, built on a machine like this one (`cargo build --release`: target/release),
#                    instead of building them in a container, which takes a while
#
# BINARIES        the same DIR
# BASE, BUILDER   images to start from; without them Debian's and Rust's of the registry and, if that cannot be reached, what
#                 docker/base.sh and docker/builder.sh make without one
# TAG             of the images; latest if left out
# NO_CACHE=1      build everything anew
set -eu
cd "$(dirname "$0")/.."
tag=${TAG:-latest}
binaries=${BINARIES:-}
while [ $# -gt 0 ]; do
    case $1 in
        --binaries)
            binaries=${2:?docker/build.sh: --binaries wants a directory, as target/release}
            shift 2
            ;;
        *)
            echo "docker/build.sh: $1: no such option; the beginning of the file says which there are" >&2
            exit 1
            ;;
    esac
done
if ! docker version >/dev/null 2>&1; then
    echo "docker/build.sh: no Docker answers here: install it (apt-get install docker.io), start it, and be in its group or root" >&2
    exit 1
fi
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH

have() { docker image inspect "$1" >/dev/null 2>&1; }
# image WANTED OWN SCRIPT: WANTED if it is here or can be had, else OWN, which SCRIPT makes.
image() {
    if have "$1" || { ! have "$2" && timeout 300 docker pull --quiet "$1" >/dev/null 2>&1; }; then
        echo "$1"
    else
        have "$2" || { echo "$1 cannot be had: making $2" >&2 && "$3" "$2" >/dev/null; }
        echo "$2"
    fi
}
BASE=${BASE:-$(image debian:bookworm-slim flexnpu-base docker/base.sh)}
export BASE

prebuilt=docker/prebuilt
rm -rf "$prebuilt"
trap 'rm -rf "$prebuilt"' EXIT
trap 'exit 130' INT TERM
if [ -n "$binaries" ]; then
    BUILDER=$BASE
    mkdir "$prebuilt"
    for program in vnpu-daemon engine gateway loadgen vnpu libvnpu_interposer.so; do
        if [ ! -f "$binaries/$program" ]; then
            echo "docker/build.sh: $binaries has no $program: cargo build --release" >&2
            exit 1
        fi
        # Without what only a debugger reads.
        strip -o "$prebuilt/$program" "$binaries/$program"
        touch -d "@$SOURCE_DATE_EPOCH" "$prebuilt/$program"
    done
else
    BUILDER=${BUILDER:-$(image rust:1-bookworm flexnpu-builder docker/builder.sh)}
fi

for target in libs vnpu-daemon engine gateway loadgen prometheus; do
    echo "flexnpu-$target:$tag"
    docker build --quiet ${NO_CACHE:+--no-cache} --file docker/Dockerfile --target "$target" --tag "flexnpu-$target:$tag" \
        --build-arg "BASE=$BASE" --build-arg "BUILDER=$BUILDER" --build-arg "SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH" . >/dev/null
done

# Whoever can read the directory has the keys; containers read the single files.
if [ ! -d docker/secrets ]; then
    mkdir -m 700 docker/secrets
fi
for name in demo_key load_key grafana_password; do
    if [ ! -s "docker/secrets/$name" ]; then
        printf 'sk-%s\n' "$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')" >"docker/secrets/$name"
        chmod 644 "docker/secrets/$name"
    fi
done
echo "keys are in docker/secrets/"
