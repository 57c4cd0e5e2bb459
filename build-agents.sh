#!/usr/bin/env bash
# Builds the programs that copy-closure uploads to machines without Nix, one for each
# kind of machine, into a directory: the one of the copy-closure program, or
# ../lib/copy-closure seen from there.
#
# usage: ./build-agents.sh [DIRECTORY [OS/ARCHITECTURE...]]
set -euo pipefail
cd "$(dirname "$0")"
into=${1:-.}
targets=("${@:2}")
[ ${#targets[@]} -gt 0 ] || targets=(linux/amd64 linux/arm64)
mkdir -p "$into"
for target in "${targets[@]}"; do
    os=${target%/*} arch=${target#*/}
    CGO_ENABLED=0 GOOS=$os GOARCH=$arch go build -trimpath -ldflags "-s -w" \
        -o "$into/copy-closure-agent-$os-$arch" ./cmd/copy-closure-agent
done
