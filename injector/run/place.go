package run

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"sallyport/injector/redirect"
)

// place is what a name owns besides rules and processes.
type place struct {
	dir       string   // /run/sallyport/NAME
	name      *os.File // its lock; its text is the folder of the cgroup in use
	namespace *os.File // the lock of the network namespace; its text is whose rules have all of it. nil without
	cgroup    *cgroup  // of the application; nil: there is none
}

// take makes the folder and locks it. Who holds the lock has the name; it goes with the process, however that ends.
func take(o *Options) (*place, error) {
	p := &place{dir: filepath.Join(o.StateDir, o.Name)}
	if err := makePassable(o.StateDir); err != nil {
		return nil, fmt.Errorf("--state: %w", err)
	}
	if st, err := os.Stat(o.StateDir); err == nil && st.Mode()&1 == 0 && o.SidecarUID != 0 {
		return nil, fmt.Errorf("--state %s: user %d, the sidecar's, may not pass through it: chmod o+x %[1]s", o.StateDir, o.SidecarUID)
	}
	if err := os.Mkdir(p.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("--state: %w", err)
	}
	// The folder is the sidecar's, which keeps its key there; the lock is ours, and beside it.
	var err error
	if p.name, err = lock(p.dir + ".lock"); errors.Is(err, errHeld) {
		return nil, fmt.Errorf("%q is running already on this machine: end it, or give this one another --name", o.Name)
	} else if err != nil {
		return nil, err
	}
	if err := os.Lchown(p.dir, int(o.SidecarUID), int(o.SidecarUID)); err != nil {
		p.leave()
		return nil, err
	}
	return p, nil
}

// makePassable makes a folder and those above it that are missing, for the sidecar's user to pass through whatever the
// umask is.
func makePassable(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := makePassable(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Chmod(dir, 0o711)
}

// lock takes a lock file, or says errHeld.
func lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, errHeld
	}
	return f, nil
}

// note keeps a line in a lock file, for who finds it after a crash.
func note(f *os.File, text string) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

func noted(f *os.File) string {
	b := make([]byte, 8192)
	n, _ := f.ReadAt(b, 0)
	return string(b[:n])
}

// leave gives the name free. The folder stays: with the identity in it the next start needs no new token.
func (p *place) leave() {
	p.name.Close()
	if p.namespace != nil {
		p.namespace.Close()
	}
}

// cgroupFolder is where the application's cgroup is to be: below our own.
func cgroupFolder(o *Options) (string, error) {
	own, err := redirect.OwnCgroup()
	if err != nil {
		return "", err
	}
	return filepath.Join(own, cgroupName(o)), nil
}

func cgroupName(o *Options) string { return "sallyport-" + o.Name }

// makeCgroup makes the cgroup of the application. Where it is not what is redirected the only thing lost without it is
// that left-behind processes are found and ended.
func (p *place) makeCgroup(o *Options) error {
	dir, err := cgroupFolder(o)
	if err == nil {
		// Before it is made, so that a crash in between leaves nothing that nobody knows of.
		if err := note(p.name, dir); err != nil {
			return err
		}
		p.cgroup, err = newCgroup(dir)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errHeld):
		return alreadyRuns(o)
	case o.Capture == Cgroup:
		return fmt.Errorf("--capture cgroup: %w; --capture namespace does without", err)
	}
	o.Log.Info("processes that the command leaves behind will not be ended: there can be no cgroup for it", "reason", err)
	return nil
}

func alreadyRuns(o *Options) error {
	return fmt.Errorf("%q is running already on this machine, with another --state: end it, or give this one another --name", o.Name)
}

// endCgroup ends what the application has left in its cgroup.
func (p *place) endCgroup(o *Options) error {
	if p.cgroup == nil {
		return nil
	}
	n, err := p.cgroup.end()
	if n > 0 {
		o.Log.Warn("processes that the command left behind were killed", "processes", n)
	}
	return err
}

// removeCgroup comes last: the rules name it.
func (p *place) removeCgroup(o *Options) {
	if p.cgroup == nil {
		return
	}
	if err := p.cgroup.remove(); err != nil {
		o.Log.Warn("the cgroup stays until the next start", "error", err)
		return
	}
	_ = note(p.name, "") // the next start finds nothing there
}

// clear removes what a crash of this name has left, wherever it was started and whatever it captured: first the
// processes, which would talk past the new sidecar or keep its port, then their rules.
func (p *place) clear(o *Options) error {
	rules, err := redirect.InForce()
	if err != nil && o.Capture == None {
		rules, err = nil, nil // without rules of our own CAP_NET_ADMIN is not needed
	}
	if err != nil {
		return err
	}
	dirs := []string{noted(p.name)}
	if dir, err := cgroupFolder(o); err == nil {
		dirs = append(dirs, dir)
	}
	mine := false
	for _, r := range rules {
		if r.Foreign || r.Config.Name != o.Name {
			continue
		}
		if filepath.Base(r.Config.Cgroup) != cgroupName(o) {
			return fmt.Errorf("there are rules named %q for the cgroup %s, which run has not made: give this one another --name, or sallyport redirect cleanup --name %s",
				o.Name, r.Config.Cgroup, o.Name)
		}
		mine = true
		dirs = append(dirs, r.Config.Cgroup)
	}
	for _, dir := range dirs {
		if err := clearCgroup(o, dir); err != nil {
			return err
		}
	}
	if mine {
		if err := redirect.Cleanup(o.Name); err != nil {
			return err
		}
	}
	return p.clearNamespace(o, rules)
}

// clearCgroup ends and removes a cgroup that an earlier run of the name has left.
func clearCgroup(o *Options, dir string) error {
	if filepath.Base(dir) != cgroupName(o) || !filepath.IsAbs(dir) {
		return nil
	}
	g, err := openCgroup(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, errHeld):
		return alreadyRuns(o)
	case err != nil:
		return err
	}
	n, err := g.end()
	if n > 0 {
		o.Log.Warn("processes that an earlier run of this name left behind were killed", "processes", n)
	}
	if err != nil {
		g.unlock()
		return fmt.Errorf("an earlier run's %w", err)
	}
	return g.remove()
}

// clearNamespace sees to the rules of the whole network namespace: it takes them over for a run that wants all of it, if
// nobody has it, and removes those that a crash of this name has left.
func (p *place) clearNamespace(o *Options, rules []redirect.Status) error {
	path, err := namespaceLock(o)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err != nil && o.Capture != Namespace {
		return nil // no run ever had it
	}
	f, err := lock(path)
	switch {
	case errors.Is(err, errHeld) && o.Capture != Namespace:
		return nil
	case errors.Is(err, errHeld):
		return errors.New("another run has the whole network namespace already (--capture namespace): end it, or --capture cgroup")
	case err != nil:
		return err
	}
	if o.Capture == Namespace {
		p.namespace = f
	} else {
		defer f.Close()
	}
	for _, r := range rules {
		if r.Foreign || r.Config.Name != "" || o.Capture != Namespace && noted(f) != whose(o, &r.Config) {
			continue
		}
		if who := inUse(&r.Config); who != "" && o.Capture == Namespace {
			return fmt.Errorf("the whole network namespace is redirected already, to a sidecar that is there: %s; end that and sallyport redirect cleanup, or --capture cgroup", who)
		} else if who != "" {
			return nil
		}
		if err := redirect.Cleanup(""); err != nil {
			return err
		}
	}
	return nil
}

// whose says in the lock of a namespace whose rules have all of it: a name alone would take those of an operator, who has
// put his own in their place, for that name's.
func whose(o *Options, rules *redirect.Config) string { return o.Name + "\n" + rules.String() }

// noteRules keeps whose, where the whole namespace is redirected.
func (p *place) noteRules(text string) error {
	if p.namespace == nil {
		return nil
	}
	return note(p.namespace, text)
}

// namespaceLock is beside those of names, and like none of them. Its number is the namespace's inode.
func namespaceLock(o *Options) (string, error) {
	var st syscall.Stat_t
	if err := syscall.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return "", err
	}
	return filepath.Join(o.StateDir, fmt.Sprintf(".netns-%d.lock", st.Ino)), nil
}

// inUse says who has the ports to which rules lead; "": nobody.
func inUse(c *redirect.Config) string {
	h := &held{uid: os.Geteuid()}
	defer h.close()
	for _, u := range (&Options{Redirect: *c}).uses()[:2] {
		if *u.port == 0 {
			continue
		}
		if err := h.use(u, *u.port); errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Sprintf("%s has port %d", whoHas(*u.port), *u.port)
		}
	}
	return ""
}
