package byhand

import (
	"fmt"
	"os/exec"
	"strings"

	"sluice/bench/lab"
)

// Apply puts sets and rules in force on a node that has none of them. It needs the
// commands ipset, if there are sets, and iptables-restore.
func (r *Rules) Apply(node *lab.Node) error {
	if len(r.Sets) > 0 {
		cmd := exec.Command("ipset", "restore")
		cmd.Stdin = strings.NewReader(r.SetsText())
		if _, err := node.Output(cmd); err != nil {
			return fmt.Errorf("make the IP sets: %w", err)
		}
	}
	cmd := exec.Command("iptables-restore", "--noflush")
	cmd.Stdin = strings.NewReader(r.RulesText())
	if _, err := node.Output(cmd); err != nil {
		return fmt.Errorf("make the rules: %w", err)
	}
	return nil
}
