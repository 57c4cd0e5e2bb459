package nix

// Sizes of what the fields of a path info take beside their text: the header of a
// string, and what an allocation is rounded up by.
const (
	infoOverhead   = 320
	stringOverhead = 32
)

// MemorySize estimates the bytes of memory that info takes, for budgets.
func (info *PathInfo) MemorySize() int {
	size := infoOverhead + len(info.Path.s) + len(info.Deriver.s) + len(info.CA)
	for _, ref := range info.References {
		size += stringOverhead + len(ref.s)
	}
	for _, sig := range info.Signatures {
		size += stringOverhead + len(sig)
	}
	return size
}
