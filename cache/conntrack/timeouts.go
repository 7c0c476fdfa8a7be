package conntrack

import (
	"os"
	"strconv"
	"strings"
	"time"

	"sluice/filter"
)

// timeouts are the times for which the kernel keeps an entry after its last packet. A time that is not known
// is 0.
type timeouts struct {
	tcp [len(tcpTimeouts)]time.Duration // by the state
	// udp is that of an exchange of less than two seconds or in one direction, and udpStream that of others.
	udp, udpStream, icmp, icmpv6 time.Duration
}

// tcpTimeouts are the names of the states of TCP connections in the names of the timeouts.
var tcpTimeouts = [...]string{
	1: "syn_sent", 2: "syn_recv", 3: "established", 4: "fin_wait", 5: "close_wait",
	tcpLastAck: "last_ack", tcpTimeWait: "time_wait", tcpClose: "close",
}

// readTimeouts reads the timeouts in the network namespace of the calling thread.
func readTimeouts() timeouts {
	read := func(name string) time.Duration {
		text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_" + name)
		if err != nil {
			return 0
		}
		seconds, _ := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 31) // 0 if it is not a number
		return time.Duration(seconds) * time.Second
	}
	t := timeouts{udp: read("udp_timeout"), udpStream: read("udp_timeout_stream"), icmp: read("icmp_timeout"), icmpv6: read("icmpv6_timeout")}
	for state, name := range tcpTimeouts {
		if name != "" {
			t.tcp[state] = read("tcp_timeout_" + name)
		}
	}
	return t
}

// of returns the timeout that the last packet of an ended connection has set.
func (t *timeouts) of(e *Event) time.Duration {
	switch e.Key.Protocol {
	case filter.TCP:
		if int(e.tcpState) < len(t.tcp) {
			return t.tcp[e.tcpState]
		}
	case filter.UDP:
		if e.assured {
			return t.udpStream
		}
		return t.udp
	case filter.ICMP:
		return t.icmp
	case filter.ICMPv6:
		return t.icmpv6
	}
	return 0
}

// last returns the time of the last packet of an ended connection, whose entry has left the table at the time
// stop, when remaining was left of the timeout. It returns zero if the time is not known.
//
// The kernel tells remaining only if it has removed the entry before the timeout, and rounds it down to
// seconds. Then the time may be a second too late.
func (t *timeouts) last(e *Event, stop time.Time, remaining time.Duration) time.Time {
	timeout := t.of(e)
	if timeout == 0 || stop.IsZero() || e.Began.IsZero() {
		return time.Time{}
	}
	if remaining > 0 {
		remaining += time.Second
	}
	last := stop.Add(-max(timeout-remaining, 0))
	if last.Before(e.Began) {
		return e.Began
	}
	return last
}
