// Package secret turns Envoy's TLS contexts into *tls.Config and keeps what
// they need up to date: certificates and validation contexts that are written
// in the configuration, read from files, received by SDS, or taken from the
// process's own identity. It is fail-closed: without a secret, or with an
// expired certificate, there is no configuration and so no connection.
//
// Store is fed by package active and by goroutines of its own (files,
// identity). Server.ServerConfig and Client.ClientConfig are called on workers,
// for each new connection: they load pointers, and build a new *tls.Config
// only when a secret changed.
//
// It also knows what of a configuration is a secret: what a dump shows, and what may be kept on disk.
//
//   - store.go: Store, the secrets of a process by name. watch.go: those in files, which are read again.
//   - context.go: Server and Client, the compiled contexts. params.go: their versions, ciphers and curves.
//   - data.go: data sources and certificates. chains.go: chains that peers showed, verified once.
//   - verify.go, san.go, spiffe.go: how a peer's certificate is judged.
//   - redact.go: Redact and Holds, over every text of a message. shown.go: the list of what may be shown. judge.go: headers, JWKS and URLs.
package secret
