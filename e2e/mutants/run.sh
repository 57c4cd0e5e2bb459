#!/bin/sh
# Breaks the program on purpose, one patch at a time, and expects a test to notice. The
# first line of each patch names the package and the test. Without arguments all patches
# are tried. A patch that no longer applies, or does not compile, is an error.
set -eu
cd "$(dirname "$0")/../.."
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
git ls-files -z | xargs -0 cp --parents -t "$tree"
[ $# -gt 0 ] || set -- e2e/mutants/*.patch
bad=0
for patch; do
    read -r _ package test <"$patch"
    patch=$(realpath "$patch")
    if ! git -C "$tree" apply "$patch"; then
        echo "$patch does not apply"
        exit 1
    fi
    if (cd "$tree" && CGO_ENABLED=0 go test -count=1 -timeout 120s -run "^($test)\$" "$package") >"$tree/log" 2>&1; then
        echo "SURVIVED $(basename "$patch"): $test of $package passes"
        bad=1
    elif grep -q -e '^ *--- FAIL' -e 'test timed out' "$tree/log"; then
        echo "noticed  $(basename "$patch")"
    else
        cat "$tree/log"
        echo "$patch: no test has failed"
        exit 1
    fi
    git -C "$tree" apply -R "$patch"
done
exit $bad
