package filter_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// listed is a package as "go list -json" prints it.
type listed struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
	Deps         []string
}

// arrow forbids imports between packages. A path that ends with "/..." includes all
// packages below.
type arrow struct {
	from    []string
	never   []string
	through bool // also forbids indirect imports
	tests   bool // also forbids imports in tests
	except  map[string][]string
	why     string
}

// arrows lists the imports that are forbidden, so that each package keeps to one job.
var arrows = []arrow{
	{
		from: []string{"sluice/filter/..."}, through: true,
		never:  []string{"sluice/cache/...", "sluice/watch/...", "sluice/cmd/...", "sluice/bench/..."},
		except: map[string][]string{"sluice/filter/engine": {"sluice/cache"}}, // the flow cache of the evaluator
		why:    "the decision does not depend on the parts around it",
	},
	{
		from: []string{"sluice/cache/..."}, through: true,
		never: []string{"sluice/watch/...", "sluice/cmd/...", "sluice/bench/..."},
		why:   "caches of verdicts do not depend on the sources of policies",
	},
	{
		from: []string{"sluice/watch/..."}, through: true,
		never: []string{"sluice/cache/...", "sluice/cmd/...", "sluice/bench/..."},
		why:   "sources of policies do not depend on their use",
	},
	{
		from: []string{"sluice/filter/...", "sluice/cache/...", "sluice/watch/...", "sluice/bench/..."}, tests: true,
		never: []string{"sluice/cmd/..."},
		why:   "the command wires the others together, and no other package needs it",
	},
	{
		from:  []string{"sluice/filter/...", "sluice/cache/...", "sluice/bench/baseline"},
		never: []string{"k8s.io/api/networking/v1"},
		except: map[string][]string{
			"sluice/filter/policy/netpol":    {"k8s.io/api/networking/v1"},
			"sluice/filter/policy/kuberoute": {"k8s.io/api/networking/v1"}, // Ingress
		},
		why: "only its reader knows the fields of a kind of policy",
	},
	{
		from:  []string{"sluice/filter/...", "sluice/cache/...", "sluice/bench/baseline"},
		never: []string{"sigs.k8s.io/network-policy-api/..."},
		except: map[string][]string{
			"sluice/filter/policy/clusterpolicy": {"sigs.k8s.io/network-policy-api/apis/v1beta1"},
		},
		why: "only its reader knows the fields of a kind of policy",
	},
	{
		from:   []string{"sluice/filter/...", "sluice/cache/...", "sluice/bench/..."},
		never:  []string{"sigs.k8s.io/gateway-api/..."},
		except: map[string][]string{"sluice/filter/policy/kuberoute": {"sigs.k8s.io/gateway-api/apis/v1"}},
		why:    "only its reader knows the fields of a kind of routes",
	},
	{
		from:  []string{"sluice/..."},
		never: []string{"sigs.k8s.io/network-policy-api/pkg/...", "sigs.k8s.io/network-policy-api/conformance/..."},
		why:   "the types of the API need nothing but apimachinery, and the rest of its module half a cluster",
	},
	{
		from:  []string{"sluice/filter", "sluice/filter/packet", "sluice/filter/policy", "sluice/filter/policy/netpol", "sluice/filter/policy/clusterpolicy", "sluice/filter/policy/kubepod", "sluice/filter/policy/kuberoute", "sluice/filter/policy/reach", "sluice/filter/policy/report"},
		never: []string{"net", "net/http", "os", "os/exec", "io", "io/fs", "time", "syscall", "unsafe"},
		except: map[string][]string{
			"sluice/filter/policy": {"time"}, // Synchronize polls, for the reason given there
		},
		why: "the decision is pure: it has no clock and does no I/O",
	},
	{
		from: []string{"sluice/filter", "sluice/filter/packet", "sluice/filter/policy", "sluice/filter/policy/netpol", "sluice/filter/policy/clusterpolicy", "sluice/filter/policy/kubepod", "sluice/filter/policy/kuberoute", "sluice/filter/policy/reach", "sluice/filter/policy/report"}, through: true,
		never: []string{
			"k8s.io/client-go/...", "github.com/vishvananda/netlink/...", "github.com/mdlayher/netlink/...", "github.com/ti-mo/...",
			"github.com/florianl/...", "github.com/coreos/go-iptables/...", "github.com/cilium/ebpf/...", "github.com/spf13/cobra/...",
		},
		why: "the decision knows neither a cluster nor a kernel",
	},
}

func TestArrows(t *testing.T) {
	packages := goList(t)
	for _, a := range arrows {
		matched := 0
		for _, p := range packages {
			if !matches(a.from, p.ImportPath) {
				continue
			}
			matched++
			for _, bad := range a.broken(p) {
				t.Errorf("%s imports %s: %s", p.ImportPath, bad, a.why)
			}
		}
		if matched == 0 {
			t.Errorf("no package in %v", a.from)
		}
	}
}

// broken lists the imports of a package that an arrow forbids.
func (a arrow) broken(p listed) (bad []string) {
	imports := slices.Clone(p.Imports)
	if a.through {
		imports = append(imports, p.Deps...)
	}
	if a.tests {
		imports = append(imports, append(p.TestImports, p.XTestImports...)...)
	}
	for _, path := range imports {
		if matches(a.never, path) && !slices.Contains(a.except[p.ImportPath], path) && !slices.Contains(bad, path) {
			bad = append(bad, path)
		}
	}
	return bad
}

func matches(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		below, all := strings.CutSuffix(pattern, "/...")
		return path == below || all && strings.HasPrefix(path, below+"/")
	})
}

// goList returns all packages of the module.
func goList(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports,Deps", "sluice/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("listing the packages: %v\n%s", err, stderr.Bytes())
	}
	var packages []listed
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatalf("reading the list of packages: %v", err)
		}
		packages = append(packages, p)
	}
}

// broken finds the imports that an arrow forbids, whether direct, indirect or in tests, but
// not the imports that the arrow excepts.
func TestBrokenArrows(t *testing.T) {
	direct := arrow{from: []string{"sluice/filter/..."}, never: []string{"sluice/cmd/...", "time"}, except: map[string][]string{"sluice/filter/b": {"time"}}}
	through, tests := direct, direct
	through.through, tests.tests = true, true
	p := listed{ImportPath: "sluice/filter/a", Imports: []string{"time", "fmt"}, Deps: []string{"time", "sluice/cmd/x"}, XTestImports: []string{"sluice/cmd"}}
	for name, test := range map[string]struct {
		a    arrow
		want []string
	}{
		"direct":  {direct, []string{"time"}},
		"through": {through, []string{"time", "sluice/cmd/x"}},
		"tests":   {tests, []string{"time", "sluice/cmd"}},
	} {
		if got := test.a.broken(p); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
	p.ImportPath = "sluice/filter/b"
	if got := direct.broken(p); got != nil {
		t.Errorf("%v is reported in spite of the exception", got)
	}
}
