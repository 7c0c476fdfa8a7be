//go:build linux

package iptables

import (
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// The commands of iptables are not in the process group of the agent.
func TestCommandHasAGroup(t *testing.T) {
	out, err := command(t.Context(), "/bin/sh", "-c", "cut -d ' ' -f 5 /proc/$$/stat").Output() // the shell's process group
	if err != nil {
		t.Fatal(err)
	}
	if group, err := strconv.Atoi(strings.TrimSpace(string(out))); err != nil || group == syscall.Getpgrp() {
		t.Errorf("process group %q, that of this process is %d", out, syscall.Getpgrp())
	}
}
