// Package chain runs a stream's events through the filters of its connection
// manager. It owns the contract between a filter and a stream: which events
// there are, what a filter may answer to each, what happens to a message while
// a filter holds it, and what becomes of work that a filter started when the
// stream ends first. docs/phases.md is the same for authors of filters.
//
// A Chain is compiled once for a connection manager and immutable: for each
// event it lists only the filters that want it. A Run is one stream's way
// through it; it belongs to the stream's worker, as all calls here do. Package
// stream embeds a Run, filters get a Context, and nobody else comes here.
//
// The files: chain.go is what filters are and how they are compiled, run.go
// the events, hold.go what is kept while a filter holds, context.go what a
// filter may do, await.go work that ends later.
package chain
