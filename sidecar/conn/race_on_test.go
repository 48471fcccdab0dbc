//go:build race

package conn

// raceDetector says that sync.Pool, which crypto/tls takes its records from, drops some of them on purpose.
const raceDetector = true
