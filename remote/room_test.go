package remote

import "testing"

func TestParseRoom(t *testing.T) {
	for text, want := range map[string]*Room{
		"100 4096 77 ext2/ext3":        {409600, 77, "ext2/ext3"},
		"0 512 0 zfs":                  {0, 0, "zfs"},
		"":                             nil,
		"-1 4096 77 x":                 nil,
		"1 0 77 x":                     nil,
		"1 4096 x":                     nil,
		"9223372036854775807 4096 1 x": nil,
	} {
		got := parseRoom(text)
		if (got == nil) != (want == nil) || got != nil && *got != *want {
			t.Errorf("%q: got %+v, want %+v", text, got, want)
		}
	}
}
