//go:build linux

package iptables

import (
	"context"
	"os/exec"
	"syscall"
)

// command returns a command that runs in a process group of its own. Signals to the agent's
// group, as from a terminal or from timeout(1), would end it in the middle of the last change of
// the rules; the agent ends it through ctx.
func command(ctx context.Context, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}
