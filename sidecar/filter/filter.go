// Package filter says how HTTP and network filters come from configuration. A
// filter is a package below this one: it declares a Kind, which package list
// names. Filters are compiled off the workers, and are then immutable.
package filter

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/metric"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream"
)

// Kind is one sort of filter.
type Kind struct {
	// Name is Envoy's name of the extension, for messages: "envoy.filters.http.rbac".
	Name string
	// TypeURL names the message of the filter's own configuration,
	// RouteTypeURL that of its overrides in typed_per_filter_config.
	TypeURL, RouteTypeURL string

	// Compile makes the HTTP filter; nil for a network filter. What is
	// wrong goes to c; the result counts only where nothing was.
	Compile func(c *Compiler, cfg *anypb.Any) stream.Filter
	// CompileRoute makes an override, which the filter finds by Context.Override.
	CompileRoute func(c *Compiler, cfg *anypb.Any) any
	// CompileNetwork makes the network filter.
	CompileNetwork func(c *Compiler, cfg *anypb.Any) Network
}

// Network is a compiled network filter; a listener.NetworkFilter.
type Network interface {
	Allow(c *stream.Connection) (ok bool, detail string)
}

// Compiler is what the compile functions get: where the configuration
// stands, where to report, and what they may use of the process.
type Compiler struct {
	*fields.Report
	// Path of the filter's configuration in its resource.
	Path string
	// FilterName is the filter's name in the configuration.
	FilterName string
	// StatPrefix starts the names of statistics, with its dot: "http.ingress.".
	// Empty for overrides, which belong to no connection manager.
	StatPrefix string
	// Metrics and Memory may be nil: then nothing is published, nothing kept.
	Metrics *metric.Registry
	Memory  *Memory
	// Format compiles header values that hold %COMMANDS%; may be nil.
	Format func(string) (route.Formatter, error)
}

// Message is a proto with the rules that its file declares.
type Message interface {
	proto.Message
	ValidateAll() error
}

// Decode unpacks cfg into m and checks the rules of m's proto file, and that
// all of it is known. It says whether m can be used.
func (c *Compiler) Decode(cfg *anypb.Any, m Message) bool {
	if err := cfg.UnmarshalTo(m); err != nil {
		c.Errorf(c.Path, "cannot be read as %s: %v", m.ProtoReflect().Descriptor().FullName(), err)
		return false
	}
	before := c.Count()
	c.refuseUnknown(m)
	return fields.Validate(c.Report, c.Path, m) && c.Count() == before
}

// At is the path of a field of the filter's configuration.
func (c *Compiler) At(field string) string { return fields.At(c.Path, field) }

// Counter counts something that happens in a filter. Safe for concurrent use.
type Counter interface{ Inc() }

// Counter returns the counter with that full name; the same for the same name,
// so that counts go on across an update.
func (c *Compiler) Counter(name string) Counter {
	if c.Metrics == nil {
		return new(metric.Single)
	}
	return c.Metrics.Single(name)
}
