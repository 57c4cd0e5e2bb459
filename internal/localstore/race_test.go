//go:build race

package localstore_test

// raceEnabled says that memory is not what it would be.
const raceEnabled = true
