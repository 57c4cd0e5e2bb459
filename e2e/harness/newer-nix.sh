#!/bin/sh
# Unpacks the Nix of newer Debian suites beside the system, and prints a line for each
# version: VERSION DIRECTORY SUITES. The programs in DIRECTORY start through their own
# loader and libraries. The packages come from the mirror that apt is configured with,
# and apt checks their signatures by Debian's keyring. What was unpacked is kept in the
# cache; the suites are looked up again after a week.
set -eu
export LC_ALL=C
suites='stable testing unstable'

if [ "$(id -u)" = 0 ]; then
    cache=/var/cache # other users cannot enter root's home
else
    cache=${XDG_CACHE_HOME:-${HOME:-${TMPDIR:-/tmp}}/.cache}
fi
dir=${COPY_CLOSURE_TEST_CACHE:-$cache/copy-closure-test}/nix
umask 022
mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
if [ -n "$(find "$dir/versions" -mtime -7 2>/dev/null)" ]; then
    exec cat "$dir/versions"
fi

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -e $keyring ] || { echo "no $keyring: install debian-archive-keyring" >&2; exit 1; }
# shellcheck disable=SC2016
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1)
[ -n "$mirror" ] || { echo "apt knows no mirror of Debian: run apt-get update" >&2; exit 1; }
apt=$(mktemp -d "$dir/apt.XXXXXX")
trap 'rm -rf "$apt"' EXIT
mkdir -p "$apt/lists/partial" "$apt/archives/partial"
for suite in $suites; do
    echo "deb [signed-by=$keyring] $mirror $suite main"
done >"$apt/sources.list"
cat >"$apt/conf" <<END
Dir::State "$apt";
Dir::State::lists "$apt/lists";
Dir::State::status "/dev/null";
Dir::Cache "$apt";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
END
export APT_CONFIG="$apt/conf"
apt-get update -qq >&2

# unpack puts the Nix of the suite $2 into $1.
unpack() {
    fresh=$apt/root
    rm -rf "$apt"/archives/*.deb
    apt-get install -qq -y --download-only -t "$2" nix-bin patchelf >"$apt/log" 2>&1 || { cat "$apt/log" >&2; return 1; }
    mkdir "$fresh"
    for deb in "$apt"/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$fresh" --exclude=./usr/share --exclude='*/perl*'
    done
    lib=/usr/lib/$(ls "$fresh/usr/lib" | grep -e -linux-gnu)
    loader=$(basename "$(echo "$fresh$lib"/ld-linux*.so.?)")
    # Nix starts itself again by its own file, so that file must name the loader.
    "$fresh$lib/$loader" --library-path "$fresh$lib" "$fresh/usr/bin/patchelf" \
        --set-interpreter "$1$lib/$loader" --force-rpath --set-rpath "$1$lib" "$fresh/usr/bin/nix"
    mkdir "$fresh/nix"
    ln -s ../usr/bin/nix "$fresh/nix/nix"
    for program in "$fresh"/usr/bin/nix-*; do
        ln -s "../usr/bin/${program##*/}" "$fresh/nix/${program##*/}"
    done
    mv "$fresh" "$1"
}

apt-cache madison nix-bin | while IFS='| ' read -r _ version _ suite _; do
    echo "${version%%[+-]*} ${suite%%/*}"
done >"$apt/found"
for version in $(cut -d' ' -f1 "$apt/found" | sort -Vu); do
    suites=$(sed -n "s/^$version //p" "$apt/found" | tr '\n' ' ')
    [ -e "$dir/$version" ] || unpack "$dir/$version" "${suites%% *}"
    echo "$version $dir/$version/nix $suites"
done >"$apt/versions"
mv "$apt/versions" "$dir/versions"
cat "$dir/versions"
