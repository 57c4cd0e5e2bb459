// Package transport runs commands on other machines and hands out their standard
// input and output as byte streams.
//
// There are two ways to a host. The built-in client speaks SSH itself and takes
// what the user's ssh_config says about the host; the other one starts the user's
// own ssh program, for configurations that only it understands. Dial chooses,
// Conn.Describe says which it was and why.
//
// The package knows nothing of what the streams carry.
package transport
