//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"sluice/bench/testbed/agenttest"
	"sluice/bench/testbed/lab"
)

// deployed are the agent's manifests: from kustomize, from the chart with its defaults, and
// from the chart with all values set.
var deployed = []string{
	"../../deploy/kustomize/base/daemonset.yaml", "../../deploy/testdata/chart-default.yaml", "../../deploy/testdata/chart-full.yaml",
}

// daemonSet returns the DaemonSet in a file of manifests.
func daemonSet(t *testing.T, path string) *appsv1.DaemonSet {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text))); ; {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			t.Fatalf("there is no DaemonSet in %s", path)
		}
		if err != nil {
			t.Fatal(err)
		}
		var d appsv1.DaemonSet
		if err := yaml.Unmarshal(document, &d); err != nil {
			t.Fatal(err)
		}
		if d.Kind == "DaemonSet" {
			return &d
		}
	}
}

// The command accepts the arguments in the manifests.
func TestDeployedArgumentsParse(t *testing.T) {
	for _, path := range deployed {
		t.Run(filepath.Base(path), func(t *testing.T) {
			c := daemonSet(t, path).Spec.Template.Spec.Containers[0]
			for _, args := range [][]string{c.Args, c.ReadinessProbe.Exec.Command[1:]} {
				cmd, rest, err := rootCommand(env{}).Find(args)
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.ParseFlags(rest); err != nil {
					t.Errorf("sluice %s: %v", strings.Join(args, " "), err)
				}
				if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
					t.Errorf("sluice %s: %v", strings.Join(args, " "), err)
				}
			}
		})
	}
}

// deployedCapabilities returns the capabilities of the agent's container, as setpriv writes them.
func deployedCapabilities(t *testing.T) (caps []string) {
	t.Helper()
	for _, c := range daemonSet(t, deployed[0]).Spec.Template.Spec.Containers[0].SecurityContext.Capabilities.Add {
		caps = append(caps, strings.ToLower(string(c)))
	}
	return caps
}

// confined returns a script that runs sluice as in a container: only with the given capabilities, no
// way to gain others by running another program, and separate mounts, with the node's BPF file
// system only at the path bpffs.
func confined(t *testing.T, caps ...string) (script, bpffs string) {
	t.Helper()
	setpriv, err := exec.LookPath("setpriv")
	if err != nil {
		t.Skip("needs setpriv: install the package util-linux")
	}
	program, err := exec.LookPath("sluice")
	if err != nil {
		t.Fatalf("find the command under test: %v", err)
	}
	script, bpffs = filepath.Join(t.TempDir(), "confined"), t.TempDir()
	text := fmt.Sprintf("#!/bin/sh\nexec unshare -m sh -c 'mount --bind /sys/fs/bpf \"$0\" && umount /sys/fs/bpf && exec \"$@\"' '%s' "+
		"'%s' --bounding-set=-all,+%s --inh-caps=-all --no-new-privs '%s' \"$@\"\n", bpffs, setpriv, strings.Join(caps, ",+"), program)
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return script, bpffs
}

// The capabilities in the manifests are enough for both backends of iptables. With nft and
// without the kernel's flow cache, NET_ADMIN is enough. The programs of the cache work at any
// path where the container mounts the node's BPF file system.
func TestDeployedCapabilitiesAreEnough(t *testing.T) {
	lab.Require(t)
	given := deployedCapabilities(t)
	for _, tt := range []struct {
		backend  string
		caps     []string
		inKernel bool
		foreign  bool // iptables cannot use the table mangle
	}{{"nft", given, true, false}, {"legacy", given, false, false}, {"nft", []string{"net_admin"}, false, false}, {"nft", given, true, true}} {
		t.Run(fmt.Sprintf("%s with %s, mangle unusable %v", tt.backend, strings.Join(tt.caps, " and "), tt.foreign), func(t *testing.T) {
			script, bpffs := confined(t, tt.caps...)
			s := newTestbed(t)
			if tt.foreign {
				s.nft(t, foreignHook)
			}
			s.write("policies.yaml", policies(demo1))
			ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
			defer cancel()
			var err error
			s.agent, err = agenttest.Start(ctx, agenttest.Options{
				Sluice: script, Node: s.Nodes[0], Dir: s.dir, Args: []string{"--socket", s.socket, "--iptables", tt.backend, "--bpffs", bpffs},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(s.agent.Kill)
			if pins := s.pinned(t); (len(pins) == 1) != tt.inKernel {
				t.Errorf("pinned: %v, want programs: %v", pins, tt.inKernel)
			}
			db := netip.AddrPortFrom(s.host("default/db").IPv6, 6379)
			for pod, want := range map[string]lab.Outcome{"default/web": lab.Reached, "default/other": lab.TimedOut} {
				if r := s.host(pod).Connect(t.Context(), "tcp", db, probeTimeout); r.Outcome != want {
					t.Errorf("%s: %v, want %v", pod, r.Outcome, want)
				}
			}
			s.save("policies.yaml", "") // makes the agent sweep the live connections
			if err := s.agent.Stop(); err != nil {
				t.Error(err)
			}
			if pins := s.pinned(t); len(pins) > 0 {
				t.Errorf("pinned after the end: %v", pins)
			}
		})
	}
}
