// Package load is the traffic of the benchmarks: backends that answer and generators that ask, each in a process of
// its own, so that their CPU time is not counted as a proxy's.
//
// Main runs one of them, as a Spec says; Command and Run, in the process that measures, start one and read what it
// reports. HTTP/1.1 and HTTP/2 are raw bytes on one epoll loop: requests and responses are made before, and of what
// comes back only what is needed is looked at. gRPC is grpc-go at both ends, TLS is crypto/tls. Everything is bounded in time.
package load

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Spec says what one process of traffic does.
type Spec struct {
	// Kind is a key of the tables backends and generators.
	Kind string
	// Seconds is how long a generator sends, and how long a backend lives at most.
	Seconds float64
	// Address is where a generator connects to. Backends choose a port of 127.0.0.1 and print the address.
	Address string `json:",omitempty"`
	// Path is that of the request; a backend's answer depends on it (Paths).
	Path string `json:",omitempty"`
	// Fields are further header fields of the request, each "name: value".
	Fields []string `json:",omitempty"`
	// Body is the size of the request's body.
	Body int `json:",omitempty"`
	// Connections, and Streams at once on each where the protocol has them.
	Connections, Streams int `json:",omitempty"`
	// Rate is the requests a second of the open loop.
	Rate int `json:",omitempty"`
	// PKI is a folder with ca.pem, a.pem and a.key: mutual TLS to the server name b.local.
	PKI string `json:",omitempty"`
	// Hold keeps the connections of "idle" until standard input ends.
	Hold bool `json:",omitempty"`
}

// Result is what a generator reports, as a line of JSON.
type Result struct {
	Done, Failed int64
	Bytes        int64          `json:",omitempty"`
	Errors       map[string]int `json:",omitempty"`
	Latency      *Latency       `json:",omitempty"`
}

// Latency is what the open loop saw, in nanoseconds from the time at which each request was due.
type Latency struct {
	P50, P99, P999, Max int64
	// Lag is the 99th percentile of how late the generator itself was to send, with a connection at hand: what of the latency is its own.
	Lag int64
}

// maxKinds bounds the kinds of error that a Result tells apart.
const maxKinds = 12

func (r *Result) fail(why string) {
	r.Failed++
	if r.Errors == nil {
		r.Errors = map[string]int{}
	}
	if _, known := r.Errors[why]; !known && len(r.Errors) >= maxKinds {
		why = "others"
	}
	r.Errors[why]++
}

var backends = map[string]func(Spec, func(address string)) error{
	"http1-backend": http1Backend,
	"http2-backend": http2Backend,
	"grpc-backend":  grpcBackend,
	"sink":          sink,
}

var generators = map[string]func(Spec) (Result, error){
	"http1":       closedLoop,
	"latency":     openLoop,
	"http2":       http2Load,
	"grpc-unary":  grpcUnary,
	"grpc-server": grpcServerStream,
	"grpc-bidi":   grpcBidi,
	"connect":     connect,
	"send":        send,
	"idle":        idle,
	"quit":        quitters,
}

func (s Spec) duration() time.Duration { return time.Duration(s.Seconds * float64(time.Second)) }

// Main is a process of traffic; arg is its Spec as JSON. It returns the exit code.
func Main(arg string) int {
	if err := run(arg); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		return 1
	}
	return 0
}

func run(arg string) error {
	var s Spec
	if err := json.Unmarshal([]byte(arg), &s); err != nil {
		return fmt.Errorf("the specification is not JSON: %w", err)
	}
	if s.Seconds <= 0 || s.Seconds > 86400 {
		return fmt.Errorf("seconds %v: must be above 0 and at most a day", s.Seconds)
	}
	if serve := backends[s.Kind]; serve != nil {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin) // it ends with the process that measures
			os.Exit(0)
		}()
		time.AfterFunc(s.duration(), func() { os.Exit(0) })
		return serve(s, func(address string) { fmt.Println(address) })
	}
	generate := generators[s.Kind]
	if generate == nil {
		return fmt.Errorf("no traffic of kind %q", s.Kind)
	}
	time.AfterFunc(s.duration()+grace, func() { os.Exit(3) })
	r, err := generate(s)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// grace is how much longer than its Seconds a generator may take for connecting and for the last answers.
const grace = 20 * time.Second

// Command is the process of a Spec: program is the one whose first argument "load" leads to Main.
func Command(ctx context.Context, program string, s Spec) *exec.Cmd {
	arg, err := json.Marshal(s)
	if err != nil {
		panic(err) // a Spec has nothing that JSON cannot say
	}
	c := exec.CommandContext(ctx, program, "load", string(arg))
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.WaitDelay = time.Second
	return c
}

// Run runs a generator to its end.
func Run(ctx context.Context, program string, s Spec) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, s.duration()+grace+5*time.Second)
	defer cancel()
	var stdout, stderr bytes.Buffer
	c := Command(ctx, program, s)
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		return Result{}, fmt.Errorf("%s: %w: %s", s.Kind, err, strings.TrimSpace(stderr.String()))
	}
	var r Result
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		return r, fmt.Errorf("%s: unreadable report %q: %w", s.Kind, stdout.String(), err)
	}
	if r.Done == 0 && r.Failed == 0 {
		return r, errors.New(s.Kind + ": not a single answer")
	}
	return r, nil
}
