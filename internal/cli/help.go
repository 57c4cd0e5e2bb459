package cli

// helpText is what --help prints; a test holds it against the flags and the README.
const helpText = `copy-closure copies Nix store paths with all they refer to, over SSH.

  copy-closure [options] --to HOST PATH…      push from this machine
  copy-closure [options] --from HOST PATH…    pull to this machine
  copy-closure plan [--html FILE] --to|--from HOST PATH…    what a copy would do
  copy-closure check --to HOST [PATH…]        what a copy would find there
  copy-closure fetch [--from-cache URL] PATH…    take from binary caches alone
  copy-closure demo [DIR…]                    the whole job on this machine alone

Other commands; --help behind each of them tells more:
  store      add, info, ls, closure, verify, delete, add-root, set-profile
  cache      push, serve, info, ls, verify, delete
  key        generate, public; sign, verify: local paths; channel publish
  profile    list, rollback [--to HOST]; serve: the far end; completion bash|zsh|fish

HOST is [ssh://|ssh-ng://][user@]host[:port][?remote-program=…&remote-store=…]
PATH is a store path, a path inside one, or a link into the store such as ./result

Copy:
  -n, --dry-run          print the plan and change nothing, anywhere
  -s, --use-substitutes  let the destination take from its caches what they have
  --substituter URL      and from this one; --refresh: ask caches anew
  --prefer WHICH         where both have a path: fast (default), push or substitute
  --trusted-public-key K believe what this key has signed
  --include-outputs      copy outputs of derivations, too; --atomic: all paths or none
  --no-check-sigs        pull paths that no trusted key has signed
  --ignore-space         copy what seems not to fit; --stdin: PATHs by line or NUL
  --sign-with FILE       sign what is pushed with the secret key in FILE (repeatable)
  --store URI            the store at this end: auto (default), local, daemon, /DIR
  --add-root LINK        make LINK a root at the destination (one for each PATH)
  -p, --profile PROFILE  make the PATH a new generation of PROFILE there
Connection:
  --ssh WHICH            auto (default), builtin or openssh; NIX_SSHOPTS is honoured
  --sudo                 be root there; --ask-sudo-password; or by --become-command CMD
  --bootstrap WHEN       upload to a host without Nix: ask, auto, never, always
  --sessions N           side by side, over up to --connections N; --bwlimit RATE: bytes
                         a second (500K, 2M); --retries N: after a lost connection (3)
  --compress HOW         auto, none, or gzip (ssh -C); --delta HOW: auto, always, never
Output:
  -v, --verbose          show steps and round trips; twice: the protocol
  -q, --quiet; --json    errors only; print plan and result as one JSON object
  --progress HOW         auto (default), bar, plain or none; -h, --help; --version

Exit codes: 0 done, 1 failed, 2 usage, 3 host not reached or log-in refused, 4 not
trusted, 5 path not valid in the source, 6 data damaged, 7 no room, 130 interrupted
`
