// Package catalog holds one model of services, their instances and who may call whom, and the two sources of it: Consul,
// by blocking queries, and a watched file. A Snapshot is immutable once published. The control plane runs one Source on
// a goroutine of its own; publish is called on goroutines of the source, one call at a time.
package catalog

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"
)

// DefaultNamespace is the namespace of what names none.
const DefaultNamespace = "default"

// Wildcard is the name of any service in an intention.
const Wildcard = "*"

// Name is the name of a service.
type Name struct {
	Namespace, Name string
}

func (n Name) String() string { return n.Namespace + "/" + n.Name }

// ParseName reads NAME or NAMESPACE/NAME.
func ParseName(s, namespace string) Name {
	if ns, name, ok := strings.Cut(s, "/"); ok {
		return Name{ns, name}
	}
	return Name{namespace, s}
}

// Protocol is what a service's application speaks.
type Protocol string

// The protocols. The zero value stands for HTTP.
const (
	HTTP  Protocol = "http"
	HTTP2 Protocol = "http2"
	GRPC  Protocol = "grpc"
	TCP   Protocol = "tcp"
)

// Protocols are the names that a person may write.
var Protocols = []string{string(HTTP), string(HTTP2), string(GRPC), string(TCP)}

// IsHTTP says that requests can be told apart.
func (p Protocol) IsHTTP() bool { return p != TCP }

// IsHTTP2 says that the application takes HTTP/2 only.
func (p Protocol) IsHTTP2() bool { return p == HTTP2 || p == GRPC }

// Endpoint is where something listens.
type Endpoint struct {
	Address string // an IP address
	Port    uint32
}

// Instance is one running copy of a service.
type Instance struct {
	ID string
	Endpoint
	// Sidecar is where the instance is reached with mutual TLS. Port 0: it has no sidecar, and nobody in the mesh reaches it.
	Sidecar Endpoint
	Healthy bool
	Weight  uint32
	Tags    []string
	Meta    map[string]string // "version" among others
	Region  string
	Zone    string
}

// InMesh says that the instance has a sidecar.
func (i *Instance) InMesh() bool { return i.Sidecar.Port != 0 }

// Service is a service with its instances, sorted by ID.
type Service struct {
	Name
	Protocol  Protocol
	Instances []Instance
}

// Action is what an intention does.
type Action string

// The actions.
const (
	Allow Action = "allow"
	Deny  Action = "deny"
)

// Intention says that a source may, or may not, call a destination. With Permissions it decides per request: the first
// permission that matches counts, and where none matches, what applies without an intention.
type Intention struct {
	Source, Destination Name // each part may be Wildcard
	Action              Action
	Permissions         []Permission
	Precedence          int // the highest that matches counts alone
}

// Permission is one rule of an intention about requests.
type Permission struct {
	Action  Action
	Path    Match // of the path; the zero value matches all
	Methods []string
	Headers []HeaderMatch
}

// MatchKind says how a Match compares.
type MatchKind int

// The kinds.
const (
	Any MatchKind = iota
	Exact
	Prefix
	Suffix
	Contains
	Regex
	Present
)

// Match compares a text.
type Match struct {
	Kind  MatchKind
	Value string
}

// HeaderMatch compares the value of a header.
type HeaderMatch struct {
	Name       string
	Match      Match
	Invert     bool
	IgnoreCase bool
}

// Snapshot is the whole catalog at one time. Immutable.
type Snapshot struct {
	Services   map[Name]*Service
	Intentions []Intention // sorted: by precedence downwards, then by name
	// DefaultIntention applies where no intention does. Empty: the source does not say, or could not be asked.
	DefaultIntention Action
}

// Service is the service of that name; one that the catalog does not have is an HTTP service without instances.
func (s *Snapshot) Service(n Name) *Service {
	if v := s.Services[n]; v != nil {
		return v
	}
	return &Service{Name: n, Protocol: HTTP}
}

// Names are the names of all services, sorted.
func (s *Snapshot) Names() []Name {
	names := make([]Name, 0, len(s.Services))
	for n := range s.Services {
		names = append(names, n)
	}
	slices.SortFunc(names, compareNames)
	return names
}

func compareNames(a, b Name) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// sort brings the snapshot into the order that makes equal catalogs equal.
func (s *Snapshot) sort() {
	for _, v := range s.Services {
		slices.SortFunc(v.Instances, func(a, b Instance) int {
			return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port),
				cmp.Compare(a.Sidecar.Address, b.Sidecar.Address), cmp.Compare(a.Sidecar.Port, b.Sidecar.Port))
		})
	}
	slices.SortStableFunc(s.Intentions, func(a, b Intention) int {
		return cmp.Or(cmp.Compare(b.Precedence, a.Precedence), compareNames(a.Destination, b.Destination), compareNames(a.Source, b.Source))
	})
}

// precedence is Consul's, by what is exact: a destination counts more than a source.
func precedence(source, destination Name) int {
	exact := func(n Name) int {
		switch {
		case n.Name != Wildcard:
			return 2
		case n.Namespace != Wildcard:
			return 1
		}
		return 0
	}
	return 3*exact(destination) + exact(source) + 1
}

// Status is how a source is doing.
type Status struct {
	Source  string    `json:"source"`
	Loaded  bool      `json:"loaded"`          // something was published
	Error   string    `json:"error,omitempty"` // why what is in force is not the newest
	Changed time.Time `json:"changed"`         // when something was published last
	// Connected says that the source can be read at present.
	Connected bool `json:"connected"`
	// LastIndex is Consul's index of the list of services that was read last.
	LastIndex uint64 `json:"lastIndex,omitempty"`
	// LastError is the last that went wrong, and stays after it was repaired.
	LastError string `json:"lastError,omitempty"`
}

// Source reads a catalog.
type Source interface {
	// Run publishes snapshots until ctx ends: nothing before the first full read, nothing that is less because the source
	// is away, and nothing that equals what was published before.
	Run(ctx context.Context, publish func(*Snapshot)) error
	Status() Status
}
