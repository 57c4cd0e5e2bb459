// Package version says which build this is. The program and the agent print it.
package version

import (
	"runtime/debug"
	"strings"
)

// release is set by the linker for releases: -X .../internal/version.release=1.2.3.
var release string

// String returns the release, or else what the Go toolchain has recorded: the
// module's version, or "devel" with the commit that was built.
func String() string {
	if release != "" {
		return release
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	return describe(info)
}

// describe drops the leading v of a module's version. The toolchain marks a build
// of a changed checkout with +dirty.
func describe(info *debug.BuildInfo) string {
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return strings.TrimPrefix(v, "v")
	}
	text := "devel"
	for _, setting := range info.Settings {
		switch {
		case setting.Key == "vcs.revision":
			text += "-" + setting.Value[:min(12, len(setting.Value))]
		case setting.Key == "vcs.modified" && setting.Value == "true":
			text += "+dirty"
		}
	}
	return text
}
