// Package exchange is one request to one host of a cluster and what comes
// back: a head and a Body go up on a stream of the host's pool, and a response,
// or the reason why there is none, goes to the exchange's User. It owns the
// cluster's statistics and the outlier detection of that request, the timeouts
// of one try, and the repetition of what a host has certainly not processed.
//
// The router of a stream is one User, package call, which makes requests of
// the proxy's own, another. An Exchange belongs to the worker of its stream.
package exchange
