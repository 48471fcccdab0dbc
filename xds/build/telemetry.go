package build

import (
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	streamlogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
)

const tracingCluster = "otlp"

// logFields are the members of an access log line.
var logFields = map[string]string{
	"start_time": "%START_TIME%", "method": "%REQ(:METHOD)%", "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%", "protocol": "%PROTOCOL%",
	"authority": "%REQ(:AUTHORITY)%", "response_code": "%RESPONSE_CODE%", "response_code_details": "%RESPONSE_CODE_DETAILS%",
	"response_flags": "%RESPONSE_FLAGS%", "bytes_received": "%BYTES_RECEIVED%", "bytes_sent": "%BYTES_SENT%", "duration": "%DURATION%",
	"upstream_host": "%UPSTREAM_HOST%", "upstream_cluster": "%UPSTREAM_CLUSTER%", "route": "%ROUTE_NAME%",
	"downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%", "downstream_peer": "%DOWNSTREAM_PEER_URI_SAN%",
	"request_id": "%REQ(X-REQUEST-ID)%", "traceparent": "%REQ(TRACEPARENT)%", "user_agent": "%REQ(USER-AGENT)%",
}

// telemetry prepares access log and traces as the Mesh document says.
func (b *builder) telemetry() {
	if l := b.Policy.Mesh.AccessLog; l != nil {
		fields := map[string]*structpb.Value{}
		for k, v := range logFields {
			fields[k] = structpb.NewStringValue(v)
		}
		format := &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: &structpb.Struct{Fields: fields}}}
		entry := &accesslogv3.AccessLog{Name: "envoy.access_loggers.stdout", ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: b.pack(
			&streamlogv3.StdoutAccessLog{AccessLogFormat: &streamlogv3.StdoutAccessLog_LogFormat{LogFormat: format}})}}
		if l.File != "" {
			entry = &accesslogv3.AccessLog{Name: "envoy.access_loggers.file", ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: b.pack(
				&filelogv3.FileAccessLog{Path: l.File, AccessLogFormat: &filelogv3.FileAccessLog_LogFormat{LogFormat: format}})}}
		}
		b.accessLog = []*accesslogv3.AccessLog{entry}
	}
	if t := b.Policy.Mesh.Tracing; t != nil && b.proxy.Kind != L4 {
		host, port := splitHostPort(t.Endpoint)
		c := fixed(tracingCluster, host, port)
		c.TypedExtensionProtocolOptions = b.http2(nil)
		b.out.Clusters = append(b.out.Clusters, c)
	}
}

// tracing is that of one connection manager.
func (b *builder) tracing() *hcmv3.HttpConnectionManager_Tracing {
	t := b.Policy.Mesh.Tracing
	if t == nil {
		return nil
	}
	sampling := 100.0
	if t.Sampling != nil {
		sampling = *t.Sampling
	}
	name := b.proxy.Service
	if b.proxy.Kind != Sidecar {
		name = b.proxy.Gateway
	}
	return &hcmv3.HttpConnectionManager_Tracing{
		RandomSampling: &typev3.Percent{Value: sampling},
		Provider: &tracev3.Tracing_Http{Name: "envoy.tracers.opentelemetry", ConfigType: &tracev3.Tracing_Http_TypedConfig{
			TypedConfig: b.pack(&tracev3.OpenTelemetryConfig{
				GrpcService: &corev3.GrpcService{Timeout: durationpb.New(connectTimeout), TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
					EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: tracingCluster}}},
				ServiceName: name,
			})}},
	}
}
