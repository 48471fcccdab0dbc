package sidecar

import (
	"os"

	"sallyport/sidecar/probe"
)

// health serves Options.Health from before the listeners are up, so that a probe gets an
// answer rather than a refused connection; nil without one.
func (p *process) health() (*probe.Server, error) {
	if p.o.Health == "" {
		return nil, nil
	}
	probes, err := probe.Parse(os.Getenv(probe.Environment))
	if err != nil {
		return nil, err
	}
	for path, p := range p.o.Probes {
		if probes == nil {
			probes = map[string]probe.Probe{}
		}
		probes[path] = p
	}
	return probe.Listen(probe.Options{Address: p.o.Health, Probes: probes, Held: p.o.Held, Log: p.log,
		Unready: p.unready,
	})
}
