package sidecar

import (
	"context"
	"fmt"
	"time"
)

// look is how often a start that is not ready yet looks at what is missing.
const look = 50 * time.Millisecond

// await returns when the process is ready for the first time, or ctx has ended. Of a transparent sidecar the listeners must
// be open that redirection leads to: whoever else had those ports would be sent the application's plaintext. That one of
// them cannot be opened is an error, and the end: the next try is the next start's.
func (p *process) await(ctx context.Context) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	told := ""
	for {
		if err := p.unopened(); err != nil {
			return err
		}
		reason := p.unready()
		if reason == "" {
			p.live.Store(true)
			p.tell("")
			return nil
		}
		if reason != told {
			told = reason
			p.tell(reason)
			p.log.Debug("not ready yet", "reason", reason)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (p *process) tell(reason string) {
	if p.o.Progress != nil {
		p.o.Progress(reason)
	}
}

// unready is why no traffic should come here, in words; "": it may. What a process needs for the first time, and what it may
// not lose, are in docs/operations.md.
func (p *process) unready() string {
	if p.draining.Load() {
		return "draining: the process is about to end"
	}
	if p.o.Identity != nil {
		if _, err := p.o.Identity.GetX509SVID(); err != nil {
			return err.Error() // it expired, and no handshake succeeds
		}
	}
	live := p.live.Load()
	why := p.state.Lacking(live)
	if live || why == "" && p.o.Mesh == nil {
		return why
	}
	// Before it was ready for the first time. A part of a mesh has nothing at all without its control plane; whoever wrote a
	// bootstrap has said there how long that may take (initial_fetch_timeout), as with Envoy.
	if why == "" && p.state.Configured() {
		return p.closed()
	}
	if c := p.client.Load(); c != nil {
		if s := c.Status(); !s.Connected && s.Error != "" {
			return "no connection to the control plane: " + s.Error
		}
	}
	if why == "" {
		why = "the control plane has sent no configuration yet"
	}
	return why
}

// mustOpen are the listeners without which a transparent sidecar is none, by the names that the control plane gives them.
// DNS is not among them: not every control plane sends it. One that was sent and could not be opened is told by unopened.
func (p *process) mustOpen() (names []string) {
	if p.o.Mesh == nil || p.o.Mesh.Transparent == nil {
		return nil
	}
	names = []string{"outbound"}
	if p.o.Mesh.Port != 0 {
		names = append(names, "inbound")
	}
	return names
}

// closed says which of them is not open; "": none.
func (p *process) closed() string {
	open := p.server.Addresses()
	for _, name := range p.mustOpen() {
		if len(open[name]) == 0 {
			return fmt.Sprintf("the control plane has sent no listener %q that could be used", name)
		}
	}
	return ""
}

// unopened is why one of them, or the resolver, could not be opened.
func (p *process) unopened() error {
	names := p.mustOpen()
	if names == nil {
		return nil
	}
	for _, name := range append(names, "dns") {
		if err := p.state.Unopened(name); err != nil {
			return err
		}
	}
	return nil
}

// shareHeld tells the listeners which ports are held for them.
func (p *process) shareHeld() {
	if !p.o.Held || p.o.Mesh == nil || p.o.Mesh.Transparent == nil {
		return
	}
	t := p.o.Mesh.Transparent
	p.server.Held = map[uint16]bool{uint16(t.Outbound): true, uint16(t.Inbound): true}
	p.dns.Held = true
}
