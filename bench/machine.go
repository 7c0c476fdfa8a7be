package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"sluice/bench/result"
)

// machine returns the description of the machine, and the versions of the measured programs.
func (b *bench) machine(ctx context.Context) (m result.Machine, err error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return m, fmt.Errorf("ask for the kernel's version: %w", err)
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return m, fmt.Errorf("ask for the machine's memory: %w", err)
	}
	m = result.Machine{
		Kernel: unix.ByteSliceToString(name.Release[:]), Cores: runtime.NumCPU(), CPU: "an unknown CPU",
		Memory: int64(info.Totalram) * int64(info.Unit), Go: runtime.Version(),
	}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		m.CPU = cpuName(string(text), m.CPU)
	}
	if m.Sluice, err = firstLine(ctx, b.sluice, "version"); err != nil {
		return m, err
	}
	m.Sluice = strings.TrimSpace(strings.TrimPrefix(m.Sluice, "sluice"))
	m.Iptables, err = firstLine(ctx, "iptables", "--version")
	return m, err
}

// cpuName returns the first "model name" of /proc/cpuinfo. If there is none, as on some
// kinds of CPU, it returns fallback.
func cpuName(cpuinfo, fallback string) string {
	for line := range strings.Lines(cpuinfo) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return fallback
}

func firstLine(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		return "", fmt.Errorf("run %s %s: %w", name, strings.Join(args, " "), err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line), nil
}
