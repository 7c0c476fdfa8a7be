package main

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// Outside of Linux, the program consists of the commands that need no node. It includes neither
// the agent nor what the agent does in the kernel. That it compiles there is checked by .ci/test,
// because that takes minutes.
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
