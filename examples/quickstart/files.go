// Package quickstart holds the files that `sallyport demo` runs: a catalog, the
// policies, and keys that are good for nothing but this example. Package demo
// copies them and fills in ports and keys of its own.
package quickstart

import "embed"

// Files are catalog.yaml and the folder policies.
//
//go:embed catalog.yaml policies
var Files embed.FS
