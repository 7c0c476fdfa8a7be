//go:build !linux

package status

import (
	"errors"
	"net"
)

// listenerOf returns 0. Agents run on Linux only, so no process on this machine is an agent.
func listenerOf(net.Conn) int { return 0 }

const noAgentHint = "agents run on Linux nodes; in a cluster, ask one with kubectl -n kube-system exec daemonset/sluice -- sluice status"

// noListener reports whether the connection failed. It does not distinguish errors: each of these
// systems has its own, and none of them runs an agent.
func noListener(err error) bool {
	var failed *net.OpError
	return errors.As(err, &failed) && failed.Op == "dial"
}
