package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"
)

// Tool is a program that is no part of the product and that some tests cannot do without.
type Tool string

// The tools that "make tools" and "make test-k8s" install, and Redis, which is the system's.
const (
	Envoy     Tool = "envoy"
	Consul    Tool = "consul"
	H2spec    Tool = "h2spec"
	APIServer Tool = "kube-apiserver"
	Etcd      Tool = "etcd"
	Redis     Tool = "redis-server"
)

// Path is where the tool is, and empty where it is not installed.
func (t Tool) Path() string {
	var places []string
	switch t {
	case Envoy:
		places = []string{filepath.Join(Root(), ".tools/envoy/envoy/_bin/envoy")}
	case Consul:
		places = []string{os.Getenv("CONSUL"), filepath.Join(Root(), ".tools/bin/consul")}
	case H2spec, APIServer, Etcd:
		places = []string{filepath.Join(Root(), ".tools/bin", string(t))}
	}
	places = append(places, string(t))
	for _, p := range places {
		if p == "" {
			continue
		}
		if found, err := exec.LookPath(p); err == nil {
			return found
		}
	}
	return ""
}

// whyMissing is what the installer noted when it could not install the tool; ok is false where it never tried.
func (t Tool) whyMissing() (why string, ok bool) {
	note, err := os.ReadFile(filepath.Join(Root(), ".tools/missing", string(t)))
	if err == nil {
		return strings.TrimSpace(string(note)), true
	}
	switch t {
	case Redis:
		return "not on the PATH (Debian: apt-get install redis-server)", true
	case APIServer, Etcd:
		return "run make test-k8s", false
	}
	return "run make tools", false
}

// Need skips the test where a tool that it cannot do without is absent. Under CI=true it fails instead, unless the
// installer tried and said why it could not: a test that merely was not prepared must not pass for one that ran.
func Need(t testing.TB, tools ...Tool) {
	t.Helper()
	for _, tool := range tools {
		if tool.Path() != "" {
			continue
		}
		why, tried := tool.whyMissing()
		if os.Getenv("CI") == "true" && !tried {
			t.Fatalf("%s is not installed: %s", tool, why)
		}
		NotRun(t, fmt.Sprintf("%s is not installed: %s", tool, why))
	}
}

// NotRun skips the test and has Main report it.
func NotRun(t testing.TB, why string) {
	t.Helper()
	notRun.Lock()
	notRun.tests = append(notRun.tests, t.Name()+": "+why)
	notRun.Unlock()
	t.Skip("NOT RUN: " + why)
}

var notRun struct {
	sync.Mutex
	tests []string
}

// Main runs the tests of a package and prints which of them were not run; TestMain calls it.
func Main(m *testing.M) int {
	runProgram()
	code := m.Run()
	removeBinary()
	notRun.Lock()
	defer notRun.Unlock()
	sort.Strings(notRun.tests)
	for _, line := range notRun.tests {
		fmt.Println("NOT RUN: " + line)
	}
	return code
}

// Root is the folder of the product's go.mod.
var Root = sync.OnceValue(func() string {
	dir, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	for {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(mod), "module sallyport\n") {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			panic("harness: not inside the sallyport module")
		}
		dir = parent
	}
})
