#!/bin/sh
# Makes the image that programs are built in where no registry can be reached: the base, a C++ compiler and cmake from Debian's mirror,
# and what this machine has of Rust: its toolchain and the crates that cargo has fetched (`cargo fetch` once, wherever that is possible).
#   docker/builder.sh [IMAGE]     flexnpu-builder if left out
# BASE names another base than flexnpu-base.
set -eu
image=${1:-flexnpu-builder}
base=${BASE:-flexnpu-base}
cd "$(dirname "$0")/.."
registry=${CARGO_HOME:-$HOME/.cargo}/registry
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM
cargo fetch --quiet --locked
mkdir "$dir/rust" "$dir/registry"
cp -a "$(rustc --print sysroot)/bin" "$(rustc --print sysroot)/lib" "$dir/rust/"
rm -rf "$dir"/rust/lib/rustlib/*/share "$dir"/rust/share
cp -a "$registry/index" "$registry/cache" "$dir/registry/"
cat >"$dir/Dockerfile" <<END
FROM $base
RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    g++ make cmake python3 >/dev/null && rm -rf /var/lib/apt/lists/*
COPY rust /usr/local/rust
COPY registry /usr/local/cargo/registry
ENV PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin CARGO_HOME=/usr/local/cargo CARGO_NET_OFFLINE=true
END
docker build --quiet --tag "$image" "$dir" >/dev/null
echo "$image"
