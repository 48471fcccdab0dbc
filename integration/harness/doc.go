// Package harness starts what an integration test talks about and says so in sentences: backends, Envoy, Consul,
// the built sallyport as sidecar, edge or control plane, and clients that see every byte.
//
// It is used by the tests in ./integration only. Everything listens on 127.0.0.1 on a port of its own, lives no longer
// than its test, is ended by its process id, and prints its log when the test fails. Nothing sleeps: what must come
// true is polled with a deadline (Eventually), and a backend records a request before it answers.
//
//	func TestSomething(t *testing.T) {
//		orders := harness.NewBackend(t, "orders").HTTP1()
//		proxy := harness.NewSidecar(t).Bootstrap(yaml).Backend("orders", orders).Run()
//		reply := harness.Get(t, proxy.Addr("http"), "/hello", "host: orders.example")
//		…reply.Status(), orders.Requests()…
//	}
//
// What there is, by file:
//
//   - need.go: Need(t, Envoy, Consul, H2spec, Redis) at the head of a test that wants a tool; NotRun; Main for TestMain,
//     which prints at the end what was not run. Under CI=true an absent tool fails the test, unless the installer
//     noted in .tools/missing why it could not be had.
//   - binary.go: Binary(t), the path of sallyport, built once per test run. SALLYPORT_BIN names another binary,
//     SALLYPORT_RACE=1 builds with the race detector; SALLYPORT_IO_URING is the --io-uring of all sidecars and edges. Run(t, args…) runs it to its end and returns what it said.
//   - process.go: Command{…}.Start(t) and Process: WaitLog, Log, Signal, Stop, Kill, WaitExit. Eventually and Within.
//   - backend.go, backend_h2.go: NewBackend(t, name).HTTP1(), .H2C(), .TCP(). A backend answers "200, its name" until it
//     is given a Script of raw replies or a Handle function; Requests and Take return what it got, byte for byte.
//   - proxy.go: NewSidecar(t), NewEdge(t), NewEnvoy(t): one builder, so that a test can run the same bootstrap in either.
//     In the YAML ${admin} is the admin port, ${listen.NAME} a free port that proxy.Addr("NAME") returns,
//     ${port.NAME} the port of the backend given as NAME, ${dead.NAME} a port on which nothing listens,
//     and ${NAME} what Value("NAME", …) says.
//   - controlplane.go: NewControlPlane(t).Consul(c) or .Catalog(yaml), .Policy(file, yaml), .Run(); change policies and
//     catalog while it runs; Kill and Restart it at the same address with the same state; Status and Says, what sallyport status prints.
//   - consul.go: NewConsul(t).Run(), a real agent in development mode, with ACLs by .ACL() and Grant; Register, Deregister, Pass, Fail, Intend, Entry, and
//     Client for everything else. redis.go: NewRedis(t).
//   - client.go: Exchange, a raw connection: bytes out, messages in; Get for the simple case. client_h2.go: DialH2, an HTTP/2
//     connection that stays open and shows every field. load.go: NewLoad, a bounded load at a fixed rate
//     that counts failures.
//   - netns.go: NewNetwork(t), a bridge and hosts on it in network namespaces (root); Host(name).Start, Run, Listen, Do.
//     Program makes a process of a function of the test; Cgroup a cgroup for it. capture.go: Network.Capture, all frames
//     that cross the bridge.
//   - wire.go: Message, an HTTP message as it was on the wire.
//   - otlp.go: NewCollector(t), an OTLP receiver in the test process.
//   - identity.go: NewAuthority, certificates for TLS; NewIssuer, JSON web tokens and their key set.
package harness
