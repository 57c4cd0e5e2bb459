// Package harness starts the real things that the end-to-end tests and the
// benchmarks run against: OpenSSH's server, Nix's stores and daemon, closures
// made of real packages, and links that are slow, far or cut.
//
// Nothing here imitates a program. The one thing that is made up is the link,
// a [Relay], since real ones cannot be slowed down at will.
//
// Functions return errors instead of taking a testing.T, so that the benchmark
// command can use them; [Need] is the exception.
package harness
