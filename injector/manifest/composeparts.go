package manifest

import (
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
)

const (
	composeTokenFile   = "/run/sallyport/token"
	composeIdentityDir = "/run/sallyport/identity"
)

// composeParts are the services that an injected one gets, with their names: its network, the redirection, the sidecar.
// network holds the keys that the first of them takes over.
func composeParts(s *composeService, w *composeWishes, o Options, network []*yaml.Node) []*yaml.Node {
	net := nodeOf(composeHolder(s, o))
	net.Content = append(net.Content, network...)
	parts := []*yaml.Node{scalar(s.name + composeNet), net, scalar(s.name + composeInit), nodeOf(composeRules(s, w, o)),
		scalar(s.name + composeProxy), nodeOf(composeSidecar(s, w, o))}
	// A service that is enabled while those that it depends on are not makes the whole file invalid.
	if profiles := find(s.view, "profiles"); !absent(profiles) {
		for i := 1; i < len(parts); i += 2 {
			put(parts[i], "profiles", clone(profiles))
		}
	}
	return parts
}

// composePart is what all three have in common: they may do nothing.
func composePart(s *composeService, o Options, user string, keys map[string]any) map[string]any {
	part := map[string]any{"image": o.Image, "user": user, "read_only": true, "cap_drop": []any{"ALL"}, "security_opt": []any{"no-new-privileges:true"},
		"labels": map[string]any{composeMark: s.name}}
	switch o.PullPolicy {
	case corev1.PullAlways:
		part["pull_policy"] = "always"
	case corev1.PullIfNotPresent:
		part["pull_policy"] = "missing"
	case corev1.PullNever:
		part["pull_policy"] = "never"
	}
	for k, v := range keys {
		part[k] = v
	}
	return part
}

var composeUser = strconv.Itoa(sidecarID) + ":" + strconv.Itoa(sidecarID)

// composeHolder owns the network namespace and does nothing, so that the namespace and its rules outlive the processes
// that come and go in it. It is not restarted by docker, neither when it dies nor with the machine: its namespace would
// be a new one, without rules, and what joins that would talk past the sidecar. While it is down nothing can join.
func composeHolder(s *composeService, o Options) map[string]any {
	return composePart(s, o, composeUser, map[string]any{"command": []any{"hold"}, "restart": "no",
		// Mounted here, the volume outlives a restart of the sidecar.
		"volumes": []any{composeIdentityMount(s, true)}})
}

// composeRules sets up the redirection, and ends. It alone may change the network.
func composeRules(s *composeService, w *composeWishes, o Options) map[string]any {
	rules := []any{"redirect", "apply", "--sidecar-uid", strconv.Itoa(sidecarID), "--inbound-mode", w.mode}
	for _, flag := range w.redirect {
		rules = append(rules, flag)
	}
	return composePart(s, o, "0:0", map[string]any{"command": rules, "network_mode": "service:" + s.name + composeNet, "cap_add": []any{"NET_ADMIN"},
		"restart": "no", "depends_on": conditions(map[string]string{s.name + composeNet: "service_started"})})
}

func composeSidecar(s *composeService, w *composeWishes, o Options) map[string]any {
	args := []any{"sidecar", "--service", w.service, "--port", strconv.Itoa(int(w.port)), "--control-plane", o.ControlPlane, "--trust-domain", o.TrustDomain,
		"--transparent", "--token-file", composeTokenFile, "--identity-dir", composeIdentityDir, "--admin", "127.0.0.1:15000",
		"--health-address", ":" + strconv.Itoa(healthPort)}
	if o.Consul != "" && w.address.IsValid() {
		args = append(args, "--consul", o.Consul, "--listen", netip.AddrPortFrom(w.address, meshPort).String())
	}
	for _, u := range w.upstreams {
		args = append(args, "--upstream", u)
	}
	if w.logLevel != "" {
		args = append(args, "--log-level", w.logLevel)
	}
	part := composePart(s, o, composeUser, map[string]any{"command": args, "network_mode": "service:" + s.name + composeNet, "restart": "unless-stopped",
		"stop_grace_period": "30s",
		"depends_on":        conditions(map[string]string{s.name + composeInit: "service_completed_successfully"}),
		// The application waits for this. A sidecar that has to wait itself, for its control plane, has two minutes.
		"healthcheck": map[string]any{"test": []any{"CMD", "sallyport", "ready"}, "interval": "5s", "timeout": "5s", "retries": 3, "start_period": "2m"},
		"volumes": []any{composeIdentityMount(s, false), map[string]any{"type": "bind", "source": composePath(w.tokenFile), "target": composeTokenFile,
			// Where there is no file, docker would make a folder of that name, as root.
			"read_only": true, "bind": map[string]any{"create_host_path": false}}}})
	for k, v := range w.limits {
		part[k] = v
	}
	return part
}

// composeIdentityMount is the volume of the sidecar's key and SVID. nocopy: what the image may have at that place would
// come with its owner.
func composeIdentityMount(s *composeService, readOnly bool) map[string]any {
	mount := map[string]any{"type": "volume", "source": s.name + composeIdentity, "target": composeIdentityDir, "volume": map[string]any{"nocopy": true}}
	if readOnly {
		mount["read_only"] = true
	}
	return mount
}

// composeVolume keeps key and SVID, as a join token serves once. It is memory, which belongs to the sidecar's user from
// the first moment, while a volume on disk would be root's; and keys do not stay on a disk. It lives while a container
// that has it runs.
func composeVolume(s *composeService) map[string]any {
	id := strconv.Itoa(sidecarID)
	return map[string]any{"driver": "local", "labels": map[string]any{composeMark: s.name},
		"driver_opts": map[string]any{"type": "tmpfs", "device": "tmpfs", "o": "uid=" + id + ",gid=" + id + ",mode=0700,size=1m,nosuid,nodev,noexec"}}
}

// elsewhere is a path that does not begin at the folder of the Compose file: an absolute one, of Windows too, the home
// folder, or a variable.
var elsewhere = regexp.MustCompile(`^([/\\~$]|\.\.?([/\\]|$)|[A-Za-z]:[/\\])`)

// composePath writes a relative path so that nobody takes it for the name of a volume.
func composePath(p string) string {
	if elsewhere.MatchString(p) {
		return p
	}
	return "./" + strings.TrimPrefix(p, "./")
}
