package version

import (
	"runtime/debug"
	"testing"
)

func TestDescribe(t *testing.T) {
	checkout := []debug.BuildSetting{
		{Key: "vcs.revision", Value: "0123456789abcdef0123456789abcdef01234567"},
		{Key: "vcs.modified", Value: "true"},
	}
	for _, test := range []struct {
		module   string
		settings []debug.BuildSetting
		want     string
	}{
		{"v0.3.1", nil, "0.3.1"},
		{"v0.0.0-20261128184223-644cd4c00000+dirty", checkout, "0.0.0-20261128184223-644cd4c00000+dirty"},
		{"(devel)", checkout, "devel-0123456789ab+dirty"},
		{"", nil, "devel"},
	} {
		info := &debug.BuildInfo{Main: debug.Module{Version: test.module}, Settings: test.settings}
		if got := describe(info); got != test.want {
			t.Errorf("version of module %q: got %q, want %q", test.module, got, test.want)
		}
	}
}
