package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"sallyport/integration/harness"
)

// nginxStream is where Debian has nginx's module for TCP; elsewhere it is compiled in.
const nginxStream = "/usr/lib/nginx/modules/ngx_stream_module.so"

// missing says why a peer cannot be measured, and nothing where it can.
func (b *bench) missing(peer string) string {
	switch peer {
	case "envoy":
		if harness.Envoy.Path() == "" {
			return "not installed: run make tools, or have envoy on the PATH"
		}
	case "haproxy", "nginx":
		if _, err := exec.LookPath(peer); err != nil {
			return "not installed (Debian: apt-get install haproxy nginx-light libnginx-mod-stream)"
		}
	default:
		return "no such peer; there are envoy, haproxy and nginx"
	}
	return ""
}

// command writes the configuration of a hop and returns what to run; nil where the peer has no such thing.
func (b *bench) command(peer string, h hop) ([]string, error) {
	h.workers = max(h.workers, 1)
	name := fmt.Sprintf("%s-%d", peer, h.listen)
	write := func(file, text string) (string, error) {
		path := filepath.Join(b.dir, name+file)
		return path, os.WriteFile(path, []byte(text), 0o600)
	}
	switch peer {
	case "envoy", "ours":
		path, err := write(".yaml", b.envoyYAML(h))
		more := []string{"-c", path, "--concurrency", strconv.Itoa(h.workers)}
		if peer == "ours" {
			return append(append([]string(nil), b.ours...), more...), err
		}
		return append([]string{harness.Envoy.Path(), "--use-dynamic-base-id", "--log-level", "error"}, more...), err
	case "haproxy":
		if h.filters {
			return nil, nil
		}
		path, err := write(".cfg", b.haproxyConfig(h))
		return []string{"haproxy", "-f", path}, err
	case "nginx":
		// HTTP/2 to a backend it has for gRPC alone.
		if h.filters || (h.h2In || h.h2Out) && !h.grpc {
			return nil, nil
		}
		path, err := write(".conf", b.nginxConfig(name, h))
		return []string{"nginx", "-c", path, "-p", b.dir}, err
	}
	return nil, fmt.Errorf("no peer %q", peer)
}

func (b *bench) haproxyConfig(h hop) string {
	mode, reuse := "http", "http-reuse always"
	if h.tcp {
		mode, reuse = "tcp", ""
	}
	bind, server := "", ""
	switch {
	case h.tlsIn:
		bind = fmt.Sprintf(" ssl crt %s/b.both.pem ca-file %[1]s/ca.pem verify required ssl-min-ver TLSv1.3", b.pki)
		if !h.tcp {
			bind += " alpn h2,http/1.1"
		}
	case h.h2In:
		bind = " proto h2"
	}
	switch {
	case h.tlsOut:
		server = fmt.Sprintf(" ssl crt %s/a.both.pem ca-file %[1]s/ca.pem verify required sni str(b.local) ssl-min-ver TLSv1.3", b.pki)
		if h.h2Out {
			server += " alpn h2"
		}
	case h.h2Out:
		server = " proto h2"
	}
	return fmt.Sprintf(`global
  maxconn 9000
  nbthread %d
  tune.h2.max-concurrent-streams 1000
defaults
  mode %s
  timeout client 600s
  timeout server 600s
  timeout connect 5s
  %s
frontend f
  bind 127.0.0.1:%d%s
  default_backend b
backend b
  server s 127.0.0.1:%d%s
`, h.workers, mode, reuse, h.listen, bind, h.upstream, server)
}

func (b *bench) nginxConfig(name string, h hop) string {
	listen := fmt.Sprintf("listen 127.0.0.1:%d", h.listen)
	module, certs, out := "", "", ""
	if h.tlsIn {
		listen += " ssl"
		certs = fmt.Sprintf(" ssl_certificate %s/b.pem; ssl_certificate_key %[1]s/b.key; ssl_client_certificate %[1]s/ca.pem; ssl_verify_client on; ssl_protocols TLSv1.3;", b.pki)
	}
	if h.grpc {
		listen += " http2"
	}
	if h.workers > 1 {
		listen += " reuseport"
	}
	listen += " backlog=4096;" + certs
	head := fmt.Sprintf(`worker_processes %d; daemon off; pid %s/%s.pid; error_log /dev/null crit;
worker_rlimit_nofile 19000; events { worker_connections 18000; }
`, h.workers, b.dir, name)
	if h.tcp {
		if _, err := os.Stat(nginxStream); err == nil {
			module = "load_module " + nginxStream + ";\n"
		}
		return module + head + fmt.Sprintf("stream { server { %s proxy_pass 127.0.0.1:%d; } }\n", listen, h.upstream)
	}
	directive, scheme := "proxy", "http"
	if h.grpc {
		directive, scheme = "grpc", "grpc"
	}
	if h.tlsOut {
		scheme += "s"
		for _, setting := range []string{"certificate " + b.pki + "/a.pem", "certificate_key " + b.pki + "/a.key", "verify on",
			"trusted_certificate " + b.pki + "/ca.pem", "name b.local", "protocols TLSv1.3"} {
			out += directive + "_ssl_" + setting + "; "
		}
	}
	how := `proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; proxy_buffering off; proxy_request_buffering off;`
	if h.large {
		how += " proxy_buffer_size 64k; proxy_buffers 8 64k; proxy_busy_buffers_size 128k;"
	}
	if h.grpc {
		how = "grpc_read_timeout 600s; grpc_send_timeout 600s;"
	}
	return head + fmt.Sprintf(`http { access_log off; keepalive_requests 100000000; keepalive_timeout 600s; client_max_body_size 0; http2_max_concurrent_streams 1000;
 client_body_temp_path %[1]s/%[2]s-body; proxy_temp_path %[1]s/%[2]s-proxy; fastcgi_temp_path %[1]s/%[2]s-f; uwsgi_temp_path %[1]s/%[2]s-u; scgi_temp_path %[1]s/%[2]s-s;
 upstream b { server 127.0.0.1:%[3]d; keepalive 1024; keepalive_requests 100000000; }
 server { %[4]s location / { %[5]s_pass %[6]s://b; %[7]s %[8]s } } }
`, b.dir, name, h.upstream, listen, directive, scheme, how, out)
}
