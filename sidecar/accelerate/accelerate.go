// Package accelerate spares TCP between this process and applications of the
// same host: what one end of a loopback connection sends is put into the
// receive queue of the other by a BPF program, without segments, acknowledgments
// and softirqs. It owns the programs and their maps, and nothing of it is
// pinned: what is attached ends with the process, however that ends.
//
// Package sidecar opens it at start; package conn marks sockets with it, asks
// Full after a send and Overlaps after a short read, on the workers, without a
// system call. docs/decisions/0004-accelerate.md has the rules and their reasons.
package accelerate

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Mode says what is wanted. The zero value is Off.
type Mode uint8

// Modes of --accelerate.
const (
	Off  Mode = iota // plain TCP
	Auto             // where the system allows it, with a line in the log where not
	On               // or the process does not start
)

// ParseMode reads the flag.
func ParseMode(s string) (Mode, error) {
	switch s {
	case "off":
		return Off, nil
	case "auto":
		return Auto, nil
	case "on":
		return On, nil
	}
	return Off, fmt.Errorf("--accelerate %q: must be auto, on or off", s)
}

// Options of Open.
type Options struct {
	Mode Mode
	// Cgroup is a folder of the cgroup v2 hierarchy that holds the
	// application; "" is the process's own.
	Cgroup string
	Log    *slog.Logger
}

// Accelerator is what runs in the kernel. Safe for concurrent use.
type Accelerator struct {
	objects programObjects
	links   []link.Link
	memory  []byte
	slots   *programSlots // in memory
	netns   uint64
	log     *slog.Logger

	mu    sync.Mutex
	ports map[uint16]int // sockets that listen on each
}

// Open loads and attaches the programs. It returns nil where mode is Off, and
// where it is Auto and the system does not allow it: the log says why.
func Open(o Options) (*Accelerator, error) {
	if o.Mode == Off {
		return nil, nil
	}
	a, err := open(o)
	if err == nil {
		return a, nil
	}
	if o.Mode == Auto {
		o.Log.Info("local hops are plain TCP, not accelerated", "reason", err)
		return nil, nil
	}
	return nil, fmt.Errorf("--accelerate on: %w", err)
}

func open(o Options) (*Accelerator, error) {
	if err := capable(); err != nil {
		return nil, err
	}
	if err := sound("/proc/sys"); err != nil {
		return nil, err
	}
	groups, err := cgroups("/proc/self", o.Cgroup)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return nil, fmt.Errorf("the kernel does not describe its types (CONFIG_DEBUG_INFO_BTF): %w", err)
	}
	a := &Accelerator{log: o.Log, ports: map[uint16]int{}}
	if err := loadProgramObjects(&a.objects, nil); err != nil {
		return nil, fmt.Errorf("the kernel does not take the BPF programs (6.1 or later is needed): %w", err)
	}
	if err := a.attach(groups); err != nil {
		a.Close()
		return nil, err
	}
	o.Log.Info("local hops are accelerated", "cgroups", groups)
	return a, nil
}

func (a *Accelerator) attach(groups []string) (err error) {
	if a.netns, err = netnsCookie(); err != nil {
		return fmt.Errorf("the kernel does not number network namespaces (5.14 or later is needed): %w", err)
	}
	a.memory, err = unix.Mmap(a.objects.Signals.FD(), 0, int(unsafe.Sizeof(programSlots{})), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map shared with the BPF programs: %w", err)
	}
	a.slots = (*programSlots)(unsafe.Pointer(unsafe.SliceData(a.memory)))
	err = link.RawAttachProgram(link.RawAttachProgramOptions{
		Target: a.objects.Sockets.FD(), Program: a.objects.Pass, Attach: ebpf.AttachSkMsgVerdict,
	})
	if err != nil {
		return fmt.Errorf("attach to the sockhash: %w", err)
	}
	for _, g := range groups {
		dir, err := os.Open(g)
		if err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
		// As a link, never as an attachment without: the kernel undoes a link when the process is gone.
		l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(dir.Fd()), Program: a.objects.Watch, Attach: ebpf.AttachCGroupSockOps})
		dir.Close()
		if err != nil {
			return fmt.Errorf("attach to cgroup %s: %w", g, err)
		}
		a.links = append(a.links, l)
	}
	return nil
}

// netnsCookie is the number of the process's network namespace.
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
}

// Close detaches. Connections that are open stay as they are: their sockets hold
// the program until they close, so that nothing that is on its way is lost.
func (a *Accelerator) Close() error {
	if a == nil {
		return nil
	}
	var errs []error
	for _, l := range a.links {
		errs = append(errs, l.Close())
	}
	if a.memory != nil {
		a.slots = nil
		errs = append(errs, unix.Munmap(a.memory))
		a.memory = nil
	}
	return errors.Join(append(errs, a.objects.Close())...)
}

// Mark says that a socket is this process's. It is called before connect; a
// socket that cannot be marked stays plain TCP.
func (a *Accelerator) Mark(fd int) {
	if err := a.objects.Marks.Update(uint32(fd), uint32(1), ebpf.UpdateAny); err != nil {
		a.log.Debug("socket is not accelerated", "error", err)
	}
}

// Listen does so for a listening socket, whose accepted sockets inherit it. The
// function that it returns is called when the socket closes.
func (a *Accelerator) Listen(fd int, port uint16) (forget func()) {
	a.Mark(fd)
	a.mu.Lock()
	defer a.mu.Unlock()
	key := programPort{Netns: a.netns, Port: uint32(port)}
	if a.ports[port]++; a.ports[port] == 1 {
		if err := a.objects.Ports.Update(key, uint32(1), ebpf.UpdateAny); err != nil {
			a.log.Warn("listener is not accelerated", "port", port, "error", err)
		}
	}
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.ports[port]--; a.ports[port] == 0 {
			delete(a.ports, port)
			// It fails only where the entry was refused before.
			_ = a.objects.Ports.Delete(key)
		}
	}
}

// Slot is the index of a connection in Full and Overlaps; two connections may share one.
func Slot(local, remote uint16) uint16 { return local ^ remote }

// Full says that the application has not read for so long that no more must be
// sent to it until Drained. It may say so of another connection of the slot.
func (a *Accelerator) Full(slot uint16) bool { return load(&a.slots.Full[slot]) }

// Overlaps says that a socket of the slot may have TCP data behind redirected
// data: recv returns the first alone, and no event follows for the second.
func (a *Accelerator) Overlaps(slot uint16) bool { return load(&a.slots.Overlaps[slot]) }

// load reads what the program writes on another CPU, the word of the byte at once.
func load(p *uint8) bool {
	at := uintptr(unsafe.Pointer(p)) & 3
	word := atomic.LoadUint32((*uint32)(unsafe.Add(unsafe.Pointer(p), -int(at))))
	return (*[4]uint8)(unsafe.Pointer(&word))[at] != 0
}

// Drained asks the kernel whether the other end has read all that was redirected to it.
func (a *Accelerator) Drained(local, remote netip.AddrPort) bool {
	far := programEndpoint{
		Netns: a.netns, Local: words(remote.Addr()), Remote: words(local.Addr()), LocalPort: remote.Port(), RemotePort: local.Port(),
	}
	ret, err := a.objects.Drained.Run(&ebpf.RunOptions{Context: far})
	if err != nil {
		a.log.Debug("cannot ask for the queue of a socket", "error", err)
	}
	// Without an answer sending goes on: late is worse than much.
	return err != nil || ret != 0
}

func words(a netip.Addr) [4]uint32 {
	b := a.As16()
	return *(*[4]uint32)(unsafe.Pointer(&b))
}

// Counts are sums since Open.
type Counts struct {
	Connections uint64 // of which both ends were found
	Messages    uint64 // redirected
	Bytes       uint64
	Slow        uint64 // directions that became TCP because their reader was slow
	Listeners   uint64 // sockets that listen now, and are known to the programs
}

// Counts sums over the CPUs.
func (a *Accelerator) Counts() Counts {
	var sum Counts
	var cpus []programCounts
	if err := a.objects.Totals.Lookup(uint32(0), &cpus); err != nil {
		a.log.Debug("cannot read the totals of the BPF programs", "error", err)
	}
	for _, c := range cpus {
		sum.Connections += c.Connections
		sum.Messages += c.Messages
		sum.Bytes += c.Bytes
		sum.Slow += c.Slow
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range a.ports {
		sum.Listeners += uint64(n)
	}
	return sum
}
