#!/bin/bash
# usage: make.sh BIN-DIRECTORY OUT
# Makes content-addressed paths that refer to themselves with the Nix in BIN-DIRECTORY, and copies them into the
# binary cache OUT. Needs python3, which adds the input-addressed paths that Nix then rewrites.
set -eu
bin=$1 out=$2 t=$(mktemp -d); trap 'chmod -R u+w "$t"; rm -rf "$t"' EXIT
export HOME=$t NIX_CONF_DIR=$t; unset NIX_REMOTE
printf 'experimental-features = nix-command ca-derivations\nsubstituters =\n' >"$t/nix.conf"
add() { # NAME: a path that refers to itself
	python3 - "$bin/nix-store" "$t/s" "$1" <<'P'
import hashlib, struct, subprocess, sys
nix, root, name = sys.argv[1:]
u = lambda v: struct.pack('<Q', v)
def s(b):
    b = b.encode() if isinstance(b, str) else b
    return u(len(b)) + b + b'\0' * (-len(b) % 8)
p = '/nix/store/iy0ijv70j3dyiyqmx1xk9f377lhg8fq9-' + name
def file(c, x=False): return s('(') + s('type') + s('regular') + ((s('executable') + s('')) if x else b'') + s('contents') + s(c) + s(')')
def link(c): return s('(') + s('type') + s('symlink') + s('target') + s(c) + s(')')
def tree(**e): return s('(') + s('type') + s('directory') + b''.join(s('entry') + s('(') + s('name') + s(n) + s('node') + e[n] + s(')') for n in sorted(e)) + s(')')
node = {'self-file': lambda: file('I am %s, and %s%s\n' % (p, p, p)),
        'self-tree': lambda: tree(bin=tree(run=file('exec %s/bin/run\n' % p, True)), link=link(p + '/bin/run'), pad=file('x' * 5000 + p))}[name]()
a = s('nix-archive-1') + node
q = subprocess.Popen([nix, '--store', root, '--serve', '--write'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
q.stdin.write(u(0x390c9deb) + u(0x206)); q.stdin.flush(); q.stdout.read(16)
q.stdin.write(u(9) + s(p) + s('') + s(hashlib.sha256(a).hexdigest()) + u(1) + s(p) + u(0) + u(len(a)) + u(0) + u(0) + s('') + a); q.stdin.flush()
assert q.stdout.read(8) == u(1); q.stdin.close(); q.wait(); print(p)
P
}
for name in self-file self-tree; do
	made=$("$bin/nix" store make-content-addressed --store "$t/s" --json "$(add $name)" | grep -o "/nix/store/[a-z0-9]*-$name" | tail -1)
	"$bin/nix" copy --no-check-sigs --from "$t/s" --to "file://$out?compression=none" "$made"
done
