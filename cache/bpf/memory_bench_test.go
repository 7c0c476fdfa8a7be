package bpf_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	madeup "sluice/bench/testbed/cluster"
	"sluice/cache"
	"sluice/cache/bpf"
	"sluice/filter"
	"sluice/filter/engine"
)

// BenchmarkMemory measures what an agent keeps of a cluster, in MiB: "agent" is the store, the snapshot
// and what Cache keeps to write the maps; "flows" is a full flow cache of one worker; "kernel" is all
// maps, of which "verdicts" is the flow cache. The kernel does not count the inner nodes of the
// map of prefixes.
func BenchmarkMemory(b *testing.B) {
	for _, of := range []struct {
		madeup.Options
		blocks int
	}{
		{madeup.Options{Pods: 10_000, Policies: 500, Namespaces: 50, Replicas: 20}, 0},
		{madeup.Options{Pods: 100_000, Policies: 10_000, Namespaces: 2_000}, 10_000},
	} {
		c := madeup.New(1, of.Options)
		if of.blocks > 0 {
			c.Policies = append(c.Policies, c.Blocks(1, of.blocks)...)
		}
		b.Run(fmt.Sprintf("pods=%d/blocks=%d", of.Pods, of.blocks), func(b *testing.B) {
			for b.Loop() {
				measureMemory(b, c)
			}
		})
	}
}

func measureMemory(b *testing.B, c *madeup.Cluster) {
	keys := c.Keys(1, 4*cache.DefaultSize)
	kernel, err := bpf.Open(bpf.Options{BPFFS: bpffs(b)})
	if err != nil {
		b.Fatal(err)
	}
	before := heap()
	u := newUser(b, kernel, nil)
	c.Fill(u.store)
	u.commit(b)
	filled := heap()
	flows := cache.NewFlows(cache.DefaultSize)
	e := engine.New(engine.Config{Published: &u.published, Memory: kernel.NewWriter()}, flows)
	for _, k := range keys {
		for range 2 { // the flow cache stores a verdict when its key is seen for the second time
			e.Enter()
			e.Evaluate(packetOf(k.SrcAddr(), k.DstAddr(), filter.TCP, k.Port, 20), filter.AtPostrouting)
			e.Exit()
		}
	}
	after := heap()
	maps := mapsOf(b)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(mib(filled-before), "agent-MiB")
	b.ReportMetric(mib(after-filled), "flows-MiB")
	b.ReportMetric(float64(flows.Stats().Size), "flows")
	b.ReportMetric(mib(maps["flows"]), "verdicts-MiB")
	all := uint64(0)
	for _, bytes := range maps {
		all += bytes
	}
	b.ReportMetric(mib(all), "kernel-MiB")
	b.Logf("%v; %+v", maps, u.published.Snapshot().Counts())
	runtime.KeepAlive(e)
	runtime.KeepAlive(keys)
	if err := kernel.Remove(); err != nil {
		b.Error(err)
	}
}

func mib(bytes uint64) float64 { return float64(bytes) / (1 << 20) }

// heap returns the size of all live objects.
func heap() uint64 {
	var m runtime.MemStats
	for range 2 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// mapsOf returns the memory of the BPF maps that this process has open, by name. A map that is open
// several times counts once.
func mapsOf(b *testing.B) map[string]uint64 {
	b.Helper()
	files, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil {
		b.Fatal(err)
	}
	sum, seen := make(map[string]uint64), make(map[ebpf.MapID]bool)
	for _, file := range files {
		text, _ := os.ReadFile(file) // that of the directory is gone
		var id ebpf.MapID
		for line := range strings.Lines(string(text)) {
			_, _ = fmt.Sscanf(line, "map_id: %d", &id)
		}
		if id == 0 || seen[id] {
			continue
		}
		seen[id] = true
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			b.Fatal(err)
		}
		info, err := m.Info()
		if err != nil {
			b.Fatal(err)
		}
		name := info.Name
		if name == "" {
			name = "a table of endpoints"
		}
		bytes, _ := info.Memlock()
		sum[name] += bytes
		_ = m.Close()
	}
	return sum
}
