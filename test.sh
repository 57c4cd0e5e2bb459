#!/bin/sh
# Runs all tests. The end-to-end tests need a real OpenSSH server and a real Nix:
# as root on Debian they are installed when missing, without any service being
# started; elsewhere the line that installs them is printed, and what can run runs.
# Arguments are passed to go test.
set -eu
cd "$(dirname "$0")"

missing=
for tool in /usr/sbin/sshd:openssh-server /usr/sbin/nginx:nginx-light xz:xz-utils bzip2:bzip2 curl:curl git:git openssl:openssl nix-store:nix-bin nix:nix-bin ssh:openssh-client zsh:zsh fish:fish tcsh:tcsh busybox:busybox-static sudo:sudo qemu-aarch64:qemu-user strace:strace; do
    command -v "${tool%%:*}" >/dev/null 2>&1 || missing="$missing ${tool##*:}"
done

# install keeps Debian from starting what it installs.
install() {
    policy=/usr/sbin/policy-rc.d
    if [ -e $policy ]; then cp -p $policy $policy.saved; fi
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
    status=0
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } >&2 || status=$?
    if [ -e $policy.saved ]; then mv $policy.saved $policy; else rm $policy; fi
    return $status
}

if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && [ -e /etc/debian_version ]; then
        # shellcheck disable=SC2086
        install $missing
    else
        echo "The end-to-end tests need more than is here. On Debian: sudo apt-get install --no-install-recommends$missing" >&2
    fi
fi
# Other versions of Nix are optional but in CI. Without NIX_REMOTE, root's nix-store would
# create /nix.
{ NIX_REMOTE=daemon nix-store --version && e2e/harness/newer-nix.sh; } || [ "${CI-}" != true ]
export CGO_ENABLED="${CGO_ENABLED:-0}"
exec go test -count=1 -timeout=30m "$@" ./...
