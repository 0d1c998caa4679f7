#!/bin/sh
# In the image's first stage: puts the programs into /programs, built from source unless docker/prebuilt/ has them.
set -eu
mkdir -p /programs
if [ -x docker/prebuilt/gateway ]; then
    cp docker/prebuilt/* /programs/
    exit 0
fi
if ! command -v cmake >/dev/null 2>&1; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends cmake >/dev/null
    rm -rf /var/lib/apt/lists/*
fi
# The same source gives the same programs, wherever it lies; without what only a debugger reads.
export CARGO_PROFILE_RELEASE_DEBUG=false CARGO_PROFILE_RELEASE_STRIP=symbols
export RUSTFLAGS="--remap-path-prefix=$PWD=/flexnpu --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
cargo build --release --locked --target-dir /tmp/target
for program in vnpu-daemon engine gateway loadgen vnpu libvnpu_interposer.so; do
    cp "/tmp/target/release/$program" /programs/
done
rm -rf /tmp/target
