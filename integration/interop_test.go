package integration

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/certs"
	"sallyport/certs/source"
	"sallyport/certs/workload"
	"sallyport/integration/harness"
)

// envoySidecar is the bootstrap of a stock Envoy that takes the place of a
// sidecar under our control plane: it says by its node's metadata what it is,
// and has its identity by SDS from an agent's Unix socket.
const envoySidecar = `
node:
  id: ${service}~envoy
  cluster: ${service}
  metadata: {kind: sidecar, namespace: default, service: ${service}, port: ${port.app}, listen: "127.0.0.1:${listen.mesh}"${upstream}}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: ${admin}}}}
dynamic_resources:
  ads_config: {api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: control_plane}}]}
  lds_config: {ads: {}, resource_api_version: V3}
  cds_config: {ads: {}, resource_api_version: V3}
static_resources:
  clusters:
  - name: sallyport_identity
    type: STATIC
    load_assignment: {cluster_name: sallyport_identity, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: ${socket}}}}}]}]}
    typed_extension_protocol_options: &h2
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
  - name: control_plane
    type: STATIC
    load_assignment: {cluster_name: control_plane, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: ${port.control}}}}}]}]}
    typed_extension_protocol_options: *h2
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context:
          tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}
          alpn_protocols: [h2]
          tls_certificate_sds_secret_configs: [{name: default, sds_config: &own {resource_api_version: V3, api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: sallyport_identity}}]}}}]
          combined_validation_context:
            default_validation_context:
              match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: "spiffe://sallyport.local/ns/sallyport/svc/control-plane"}}]
            validation_context_sds_secret_config: {name: ROOTCA, sds_config: *own}
`

// agent joins the mesh as a service and hands the identity on, as the standard
// says, to the processes of this user; it returns its socket.
func agent(t *testing.T, control *harness.ControlPlane, service string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	log := slog.New(slog.DiscardHandler)
	src, err := source.Join(ctx, source.Options{Address: control.Addr(), Service: service, Token: control.Token("--service", service), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	socket := filepath.Join(t.TempDir(), "agent.sock")
	l, err := workload.Listen(socket, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	serve, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = workload.New(workload.Users(src, uint32(os.Getuid())), workload.Options{Logger: log}).Serve(serve, l)
	}()
	t.Cleanup(func() { stop(); <-done })
	return socket
}

func envoyIn(t *testing.T, control *harness.ControlPlane, service, upstream string, app interface{ Addr() string }) *harness.ProxyBuilder {
	t.Helper()
	return harness.NewEnvoy(t).Bootstrap(envoySidecar).Value("service", service).Value("upstream", upstream).
		Value("socket", agent(t, control, service)).At("control", control.Addr()).Backend("app", app)
}

func TestEnvoyIsACallerInOurMesh(t *testing.T) {
	harness.Need(t, harness.Envoy)
	app := harness.NewBackend(t, "orders").HTTP1()
	server := harness.NewSidecar(t).Service("orders", app.Port())
	control := harness.NewControlPlane(t).Args("--status-listen", "-").Catalog(meshOf(t, app, server.Address("mesh"))).Run()
	server.ControlPlane(control.Addr(), control.Token("--service", "orders")).Run()
	local := harness.FreePort(t)
	envoyIn(t, control, "shop", fmt.Sprintf(", upstreams: [{service: orders, port: %d}]", local), harness.NewBackend(t, "shop").HTTP1()).Run()
	crosses(t, app, fmt.Sprintf("127.0.0.1:%d", local))
}

func TestEnvoyIsACalleeInOurMesh(t *testing.T) {
	harness.Need(t, harness.Envoy)
	app := harness.NewBackend(t, "orders").HTTP1()
	mesh := harness.FreeAddr(t)
	control := harness.NewControlPlane(t).Args("--status-listen", "-").Catalog(meshOf(t, app, mesh)).Run()
	bootstrap := strings.Replace(envoySidecar, "127.0.0.1:${listen.mesh}", mesh, 1)
	envoyIn(t, control, "orders", "", app).Bootstrap(bootstrap).Run()
	caller := harness.NewSidecar(t).Service("shop", 1).ControlPlane(control.Addr(), control.Token("--service", "shop")).Upstream("orders").Run()
	crosses(t, app, caller.Addr("orders"))
}

// meshOf is a catalog in which shop may call orders.
func meshOf(t *testing.T, app *harness.Backend, mesh string) string {
	t.Helper()
	return fmt.Sprintf("services:\n- name: shop\n  instances: []\n- name: orders\n  instances:\n  - {id: orders-0, address: 127.0.0.1, port: %d, sidecar: {port: %s}}\n"+
		"intentions: [{source: shop, destination: orders, action: allow}]\ndefaultIntention: deny\n", app.Port(), port(t, mesh))
}

// crosses checks that a request goes through, and that the application was
// told by whom it was called.
func crosses(t *testing.T, app *harness.Backend, addr string) {
	t.Helper()
	harness.Eventually(t, 15*time.Second, "a request through both sidecars", func() error {
		reply, err := harness.TryGet(addr, "/", "host: orders")
		if err != nil {
			return err
		}
		if reply.Status() != 200 {
			return fmt.Errorf("answered %d", reply.Status())
		}
		return nil
	})
	want := "spiffe://" + certs.DefaultTrustDomain + "/ns/default/svc/shop"
	got := app.Requests()
	if last := string(got[len(got)-1].Raw); !strings.Contains(last, want) {
		t.Errorf("the application was not told of %s:\n%s", want, last)
	}
}
