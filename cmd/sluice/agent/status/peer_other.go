//go:build !linux

package status

import (
	"errors"
	"net"
)

// listenerOf returns 0: agents run on Linux, so the listener is not in this machine's namespace.
func listenerOf(net.Conn) int { return 0 }

const noAgentHint = "agents run on Linux nodes; in a cluster, ask one with kubectl -n kube-system exec daemonset/sluice -- sluice status"

// noListener reports whether a connection failed. The errors differ between systems, and none of them
// has an agent.
func noListener(err error) bool {
	var failed *net.OpError
	return errors.As(err, &failed) && failed.Op == "dial"
}
