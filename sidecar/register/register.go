// Package register puts a service and its sidecar into Consul's catalog: the
// service with a health check on the application, and a connect-proxy beside
// it with a check on the mTLS port. It owns the two registrations from Run's
// first try to its end. The sub-command `sidecar --consul` calls it, on an
// ordinary goroutine; nothing on the data path waits for it. `run` deregisters for
// a sidecar that could not.
package register

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/hashicorp/consul/api"
)

// Options of a registration.
type Options struct {
	Consul  string // URL of the agent
	Token   string // ACL token, "" for none
	Service string
	// Namespace is kept as meta data, for Consul has none outside its Enterprise edition; "" is the default one.
	Namespace string
	ID        string // of the instance; default: service and port
	// Address and Port of the application, SidecarPort of its sidecar's mTLS listener.
	Address           string
	Port, SidecarPort int
	// Health is the path of an HTTP check on the application, "" for a TCP check.
	Health string
	// CheckURL is checked in place of the application, where Consul cannot reach that itself: a 2xx is healthy.
	CheckURL string
	Tags     []string
	Meta     map[string]string
	// Look is how often the registrations are looked for, and made again where they are gone; default 10 s.
	Look time.Duration
	Log  *slog.Logger
}

// MetaNamespace is the meta data in which an instance says its namespace, for package xds/catalog. The two do not import
// each other; integration tests hold them together.
const MetaNamespace = "sallyport-namespace"

// Bounds of the wait between tries, and the life of a registration whose
// instance went away without a word.
const (
	firstRetry = 200 * time.Millisecond
	lastRetry  = 10 * time.Second
	checkEvery = "1s"
	goneAfter  = "1m" // Consul's least
	lookEvery  = 10 * time.Second
	// lastWord is how long each deregistration may take: the agent may be gone, too.
	lastWord = 3 * time.Second
)

// Run registers, again and again until Consul takes it, registers anew when
// the agent has lost that (it was replaced, or had given the instance up while
// it was ill), and deregisters when ctx ends: also what it only tried to
// register, for the agent may have taken it without our hearing of that. It
// returns an error only where Consul could never be asked, or the
// deregistration failed.
func Run(ctx context.Context, o Options) error {
	if ctx.Err() != nil {
		return nil
	}
	client, err := o.client()
	if err != nil {
		return err
	}
	o.ID = o.id()
	if o.Address == "" {
		o.Address = "127.0.0.1"
	}
	if o.Look == 0 {
		o.Look = lookEvery
	}
	if o.Namespace != "" {
		o.Meta = maps.Clone(o.Meta)
		if o.Meta == nil {
			o.Meta = map[string]string{}
		}
		o.Meta[MetaNamespace] = o.Namespace
	}
	if o.insist(ctx, client) {
		o.Log.Info("registered in Consul", "service", o.Service, "id", o.ID)
		o.keep(ctx, client)
	}
	return o.deregister(context.WithoutCancel(ctx), client) // ctx is over
}

// Deregister takes both registrations of an instance away, for one that cannot do it itself; that there are none is no
// error. Of the options it needs the agent, and what the ID is made of.
func Deregister(ctx context.Context, o Options) error {
	client, err := o.client()
	if err != nil {
		return err
	}
	o.ID = o.id()
	return o.deregister(ctx, client)
}

func (o *Options) client() (*api.Client, error) {
	cfg := api.DefaultConfig()
	cfg.Address, cfg.Token = o.Consul, o.Token
	client, err := api.NewClient(cfg)
	if err != nil {
		return nil, fmt.Errorf("address of the Consul agent %q: %w", o.Consul, err)
	}
	return client, nil
}

func (o *Options) id() string {
	if o.ID != "" {
		return o.ID
	}
	return o.Service + "-" + strconv.Itoa(o.Port)
}

// deregister takes the service away first: it is what others find. Each has a time of its own, so that a slow answer to
// the one does not leave the other.
func (o *Options) deregister(ctx context.Context, client *api.Client) error {
	var errs []error
	for _, id := range []string{o.ID, o.ID + proxySuffix} {
		each, cancel := context.WithTimeout(ctx, lastWord)
		err := client.Agent().ServiceDeregisterOpts(id, (&api.QueryOptions{}).WithContext(each))
		cancel()
		if unknown(err) {
			err = nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// unknown says that the agent answers, and has no such service.
func unknown(err error) bool {
	var status api.StatusError
	return errors.As(err, &status) && status.Code == http.StatusNotFound
}

// insist registers until Consul takes it; false: ctx ended before.
func (o *Options) insist(ctx context.Context, client *api.Client) bool {
	wait := firstRetry
	for {
		err := o.register(ctx, client)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		o.Log.Warn("registration in Consul failed; trying again", "service", o.Service, "error", err, "again_in", wait)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(wait):
		}
		wait = min(2*wait, lastRetry)
	}
}

// keep looks for the registrations until ctx ends.
func (o *Options) keep(ctx context.Context, client *api.Client) {
	tick := time.NewTicker(o.Look)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !o.lost(ctx, client) {
			continue
		}
		o.Log.Warn("the agent has lost the registration; registering again", "service", o.Service, "id", o.ID)
		if !o.insist(ctx, client) {
			return
		}
	}
}

// lost says that the agent answers, and knows one of the two no more.
func (o *Options) lost(ctx context.Context, client *api.Client) bool {
	ids := []string{o.ID}
	if o.SidecarPort != 0 {
		ids = append(ids, o.ID+proxySuffix)
	}
	for _, id := range ids {
		if _, _, err := client.Agent().Service(id, (&api.QueryOptions{}).WithContext(ctx)); unknown(err) {
			return true
		}
	}
	return false
}

// proxySuffix is how Consul itself names the registration of a sidecar.
const proxySuffix = "-sidecar-proxy"

func (o *Options) register(ctx context.Context, client *api.Client) error {
	opts := api.ServiceRegisterOpts{ReplaceExistingChecks: true}.WithContext(ctx)
	target := net.JoinHostPort(o.Address, strconv.Itoa(o.Port))
	check := &api.AgentServiceCheck{Name: "application", TCP: target, Interval: checkEvery, Timeout: "1s", DeregisterCriticalServiceAfter: goneAfter}
	if o.Health != "" {
		check.TCP, check.HTTP = "", "http://"+target+o.Health
	}
	if o.CheckURL != "" {
		check.TCP, check.HTTP = "", o.CheckURL
	}
	if err := client.Agent().ServiceRegisterOpts(&api.AgentServiceRegistration{
		ID: o.ID, Name: o.Service, Address: o.Address, Port: o.Port, Tags: o.Tags, Meta: o.Meta, Check: check,
	}, opts); err != nil {
		return fmt.Errorf("service %s: %w", o.ID, err)
	}
	if o.SidecarPort == 0 {
		return nil
	}
	if err := client.Agent().ServiceRegisterOpts(&api.AgentServiceRegistration{
		Kind: api.ServiceKindConnectProxy, ID: o.ID + proxySuffix, Name: o.Service + proxySuffix, Address: o.Address, Port: o.SidecarPort, Meta: o.Meta,
		Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: o.Service, DestinationServiceID: o.ID, LocalServiceAddress: "127.0.0.1", LocalServicePort: o.Port},
		Check: &api.AgentServiceCheck{Name: "sidecar", TCP: net.JoinHostPort(o.Address, strconv.Itoa(o.SidecarPort)), Interval: checkEvery, Timeout: "1s",
			DeregisterCriticalServiceAfter: goneAfter},
	}, opts); err != nil {
		return fmt.Errorf("sidecar of %s: %w", o.ID, err)
	}
	return nil
}
