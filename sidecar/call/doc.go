// Package call makes requests of the proxy's own to a cluster: what Envoy names
// http_uri and grpc_service. They go over the cluster's pools, under its circuit
// breakers, outlier detection and TLS like any other request, on a worker and
// without blocking it, with a deadline, limits and Cancel. Filters call it
// through Context.Await; anything else on a worker may.
//
// The files: http.go is a request and its response, stream.go a stream of gRPC
// messages both ways, unary.go one message for another.
package call
