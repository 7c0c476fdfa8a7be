package main

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// On other systems than Linux, the program consists of the commands that need no node. It includes
// neither the agent nor the packages through which the agent uses the kernel. Compiling for these
// systems takes minutes, so .ci/test does it.
func TestOnlyLinuxHasTheAgent(t *testing.T) {
	linuxOnly := []string{
		"sluice/cmd/sluice/agent", "sluice/cmd/sluice/agent/telemetry", "sluice/cmd/sluice/agent/hubble", "sluice/cache/bpf", "sluice/cache/conntrack",
		"sluice/filter/bpffs", "sluice/filter/guard", "sluice/filter/queue", "sluice/watch/node", "github.com/cilium/ebpf", "github.com/vishvananda/netlink",
	}
	for _, system := range []string{"linux", "darwin", "windows"} {
		t.Run(system, func(t *testing.T) {
			cmd := exec.Command("go", "list", "-deps", ".")
			cmd.Env = append(os.Environ(), "GOOS="+system, "GOARCH=amd64", "CGO_ENABLED=0")
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			packages := strings.Fields(string(out))
			for _, p := range linuxOnly {
				if has := slices.Contains(packages, p); has != (system == "linux") {
					t.Errorf("the program for %s imports %s: %v", system, p, has)
				}
			}
			if !slices.Contains(packages, "sluice/watch/kube") {
				t.Errorf("the program for %s cannot read clusters", system)
			}
		})
	}
}
