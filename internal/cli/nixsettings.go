package cli

import (
	"os"
	"slices"
	"strings"

	"github.com/copy-closure/copy-closure/internal/nixconf"
)

// Every program of Nix takes each setting as an option: --NAME VALUE, and --NAME or
// --no-NAME of a boolean. These are the settings of Nix 2.8 to 2.34, with their aliases.
var (
	booleanSettings = strings.Fields(`
	abort-on-warn accept-flake-config allow-dirty allow-dirty-locks
	allow-import-from-derivation allow-new-privileges allow-symlinked-store
	allow-unsafe-native-code-during-evaluation always-allow-substitutes auto-allocate-uids
	auto-optimise-store build-compress-log build-fallback build-impersonate-linux-26
	build-keep-log build-use-chroot build-use-sandbox build-use-substitutes
	builders-use-substitutes compress-build-log debugger-on-trace debugger-on-warn
	enforce-determinism env-keep-derivations eval-cache fallback filter-syscalls
	fsync-metadata fsync-store-paths gc-keep-derivations gc-keep-outputs http2 ignore-try
	impersonate-linux-26 keep-build-log keep-derivations keep-env-derivations keep-failed
	keep-going keep-outputs nix-shell-always-looks-for-shell-nix
	nix-shell-shebang-arguments-relative-to-script preallocate-contents print-missing
	pure-eval require-drop-supplementary-groups require-sigs restrict-eval run-diff-hook
	sandbox sandbox-fallback show-trace substitute sync-before-registering
	trace-function-calls trace-import-from-derivation trace-verbose
	trust-tarballs-from-git-forges use-case-hack use-cgroups use-registries use-sqlite-wal
	use-xdg-base-directories warn-dirty warn-short-path-literals`)
	valuedSettings = strings.Fields(`
	access-tokens allowed-impure-host-deps allowed-uris allowed-users bash-prompt
	bash-prompt-prefix bash-prompt-suffix binary-cache-public-keys binary-caches
	binary-caches-parallel-connections build-chroot-dirs build-cores build-dir build-hook
	build-max-jobs build-max-log-size build-max-silent-time build-poll-interval build-repeat
	build-sandbox-paths build-timeout build-users-group builders commit-lock-file-summary
	commit-lockfile-summary connect-timeout cores diff-hook download-attempts
	download-buffer-size download-speed eval-attrset-update-layer-rhs-threshold
	eval-profile-file eval-profiler eval-profiler-frequency eval-system experimental-features
	external-builders extra-platforms flake-registry gc-reserved-space hashed-mirrors
	http-connections id-count ignored-acls impure-env json-log-path
	lint-absolute-path-literals lint-short-path-literals lint-url-literals log-lines
	max-build-log-size max-call-depth max-free max-jobs max-silent-time max-substitution-jobs
	min-free min-free-check-interval nar-buffer-size narinfo-cache-meta-ttl
	narinfo-cache-negative-ttl narinfo-cache-positive-ttl netrc-file nix-path plugin-files
	post-build-hook pre-build-hook repeat sandbox-build-dir sandbox-dev-shm-size sandbox-paths
	secret-key-files ssl-cert-file stalled-download-timeout start-id store substituters
	substitution-max-jobs system system-features tarball-ttl timeout trusted-binary-caches
	trusted-public-keys trusted-substituters trusted-users upgrade-nix-store-path-url
	user-agent-suffix warn-large-path-threshold`)
)

// takeSettings takes the settings of Nix out of a command line that was meant for
// nix-copy-closure. What flags says of options comes first. The settings that matter here
// are added to NIX_CONFIG, for us and for the Nix that is started.
func takeSettings(args []string, flags map[string]bool) (rest []string, err error) {
	var lines []string
	for i := 0; i < len(args); i++ {
		name, long := strings.CutPrefix(args[i], "--")
		setting, value, taken := settingOf(name)
		_, known := flags[name]
		switch {
		case args[i] == "--":
			return append(rest, args[i:]...), addConfig(lines)
		case name == "option" && i+2 < len(args):
			lines = append(lines, args[i+1]+" = "+args[i+2])
			i += 2
		case name == "debug" && long:
			rest = append(rest, "-vv")
		case !long || known || !taken:
			rest = append(rest, args[i])
		case value != "":
			lines = append(lines, setting+" = "+value)
		case i+1 == len(args):
			return nil, usagef("%s takes a value", args[i])
		default:
			lines = append(lines, setting+" = "+args[i+1])
			i++
		}
	}
	return rest, addConfig(lines)
}

// settingOf returns the setting that an option means, and its value if it is a boolean.
func settingOf(name string) (setting, value string, ok bool) {
	base, no := strings.CutPrefix(name, "no-")
	switch {
	case slices.Contains(valuedSettings, strings.TrimPrefix(name, "extra-")):
		return name, "", true
	case slices.Contains(booleanSettings, name):
		return name, "true", true
	case no && slices.Contains(booleanSettings, base):
		return base, "false", true
	}
	return "", "", false
}

// addConfig has lines apply as if they stood at the end of the configuration.
func addConfig(lines []string) error {
	if len(lines) == 0 {
		return nil
	}
	text := strings.Join(append([]string{os.Getenv("NIX_CONFIG")}, lines...), "\n")
	if err := os.Setenv("NIX_CONFIG", text); err != nil {
		return err
	}
	if _, err := nixconf.Load(os.LookupEnv); err != nil {
		return usagef("%v", err)
	}
	return nil
}
