package harness

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sort"
	"strconv"
	"strings"
	"time"
)

func reasonPhrase(code int) string { return http.StatusText(code) }

// H2C starts the backend as an HTTP/2 server with prior knowledge (over TLS where TLS was called). Its replies are read as
// the same raw HTTP/1.1 texts as HTTP1's, with the trailers of chunked ones; without a script, a gRPC request
// gets its own content back and grpc-status 0 in the trailers.
func (b *Backend) H2C() *Backend {
	b.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	b.listener = l
	var protocols http.Protocols
	if b.tls == nil {
		protocols.SetUnencryptedHTTP2(true)
	} else {
		protocols.SetHTTP2(true)
		config := b.tls.Clone()
		config.NextProtos = []string{"h2"}
		l = tls.NewListener(l, config)
	}
	server := &http.Server{
		Protocols: &protocols, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 1000},
		Handler: http.HandlerFunc(b.http2), ReadHeaderTimeout: time.Minute,
		ErrorLog: log.New(io.Discard, "", 0), // a proxy that is being tested may well send nonsense
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				b.mu.Lock()
				b.accepted++
				b.mu.Unlock()
			}
		},
	}
	b.stop = func() { server.Close() }
	b.serving.Add(1)
	go func() {
		defer b.serving.Done()
		server.Serve(l)
	}()
	b.t.Cleanup(b.Close)
	return b
}

func (b *Backend) http2(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	m := Message{Framing: Stream, Body: body, Fields: []Field{
		{":authority", r.Host}, {":method", r.Method}, {":path", r.RequestURI},
	}}
	if r.ContentLength >= 0 && r.Header.Get("content-length") != "" {
		m.Fields = append(m.Fields, Field{"content-length", strconv.FormatInt(r.ContentLength, 10)})
		r.Header.Del("content-length")
	}
	m.Fields = append(m.Fields, flatten(r.Header)...)
	m.Trailers = flatten(r.Trailer)

	grpc := strings.HasPrefix(r.Header.Get("content-type"), "application/grpc")
	switch reply := b.record(m); {
	case reply == Silence:
		<-r.Context().Done()
	case reply == Hangup:
		panic(http.ErrAbortHandler)
	case reply == Ordinary && grpc:
		w.Header().Set("content-type", "application/grpc")
		w.Header().Set("trailer", "grpc-status, grpc-message")
		w.Write(body)
		w.Header().Set("grpc-status", "0")
		w.Header().Set("grpc-message", "")
	case reply == Ordinary:
		w.Header().Set("content-type", "text/plain")
		w.Header().Set("content-length", strconv.Itoa(len(b.Name)))
		io.WriteString(w, b.Name)
	default:
		replay(w, reply, r.Method)
	}
}

// replay sends a raw HTTP/1.1 response as an HTTP/2 one.
func replay(w http.ResponseWriter, raw, method string) {
	m, err := newReader(strings.NewReader(raw)).response(method)
	if err != nil {
		panic(fmt.Sprintf("harness: a scripted reply that is no response: %v\n%s", err, raw))
	}
	for _, f := range m.Fields {
		if !strings.EqualFold(f.Name, "transfer-encoding") && !strings.EqualFold(f.Name, "connection") {
			w.Header().Add(f.Name, f.Value)
		}
	}
	for _, f := range m.Trailers {
		w.Header().Add(http.TrailerPrefix+f.Name, f.Value)
	}
	w.WriteHeader(m.Status())
	w.Write(m.Body)
}

// flatten lists the fields with their names as they are in HTTP/2.
func flatten(h http.Header) (fields []Field) {
	for name, values := range h {
		for _, v := range values {
			fields = append(fields, Field{strings.ToLower(name), v})
		}
	}
	sort.SliceStable(fields, func(i, j int) bool { return fields[i].Name < fields[j].Name })
	return fields
}
