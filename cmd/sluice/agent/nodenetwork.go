package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"sluice/cmd/sluice/agent/status"
	"sluice/cmd/sluice/agent/telemetry"
	"sluice/filter/event"
	"sluice/filter/policy"
	"sluice/watch/node"
)

const (
	// settingsInterval is the time between two reads of the kernel's settings: the kernel does
	// not report their changes.
	settingsInterval = 2 * time.Second
	// outsideTimeout is the time after which a pod with an address outside of all ranges is a
	// problem. For a short time this is normal: when a pod ends, its route is removed before
	// the API reports the end.
	outsideTimeout = 30 * time.Second
)

// nodeNetwork tracks the node's interfaces, routes and kernel settings. It derives the ranges
// of this node's pods from them, and finds settings that let packets bypass the rules.
type nodeNetwork struct {
	starting *policy.StartingPods
	cluster  bool          // pods come from a cluster, and must have addresses in the ranges
	derive   bool          // derive ranges of pods from the node's routes too
	root     string        // directory of the kernel's settings, /proc/sys
	timeout  time.Duration // outsideTimeout, except in tests
	// guarded reports whether the guard drops frames with VLAN tags or forged sources at pods'
	// interfaces. A nil guarded counts as false.
	guarded func() bool
	log     *slog.Logger
	// onDevices, if not nil, is called with the interface indexes of those pods of this node
	// that have an interface of their own. The keys are the pods' addresses.
	onDevices func(map[netip.Addr]uint32)
	// onStarting, if not nil, is called with the derived ranges before the snapshot treats
	// unknown addresses in them as pending.
	onStarting func([]netip.Prefix)

	mu sync.Mutex
	// uncheckedSources is set if the rules do not drop forged sources. In that case, some
	// settings that are otherwise harmless are problems.
	uncheckedSources bool

	network  *node.Network
	snapshot *policy.Snapshot         // the snapshot from which the next two fields were read
	pods     []netip.Addr             // addresses of this node's pods
	names    map[netip.Addr]string    // names of these pods by address
	since    map[netip.Addr]time.Time // when the pod of an address was first outside of all ranges
	outside  []netip.Addr             // pods outside of all ranges for longer than timeout
	settings []node.SettingProblem    // kernel settings that let packets bypass the rules
	logged   map[node.SettingProblem]bool
	warned   bool // a warning about pods outside of all ranges was logged
}

func newNodeNetwork(starting *policy.StartingPods, log *slog.Logger) *nodeNetwork {
	return &nodeNetwork{
		starting: starting, root: node.DefaultSysctls, timeout: outsideTimeout, log: log,
		since: make(map[netip.Addr]time.Time), logged: make(map[node.SettingProblem]bool),
	}
}

// run follows the node's network and settings until ctx ends.
func (n *nodeNetwork) run(ctx context.Context, published *policy.Published) {
	var wait sync.WaitGroup
	wait.Go(func() {
		node.FollowNetwork(ctx, n.log, func(now *node.Network) {
			n.setNetwork(now)
			n.refresh(nil)
		})
	})
	tick := time.NewTicker(settingsInterval)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			n.refresh(published.Snapshot())
		}
	}
	wait.Wait()
}

// begin reads network and settings for the first time, before there are rules.
func (n *nodeNetwork) begin(s *policy.Snapshot) {
	now, err := node.ReadNetwork()
	if err != nil {
		n.log.Warn("this node's interfaces and routes are not known yet", "err", err)
	} else {
		n.setNetwork(now)
	}
	n.refresh(s)
}

// setUncheckedSources records that the rules do not drop forged sources.
func (n *nodeNetwork) setUncheckedSources() {
	n.mu.Lock()
	n.uncheckedSources = true
	n.mu.Unlock()
	n.refresh(nil)
}

// setNetwork stores the network that was just read.
func (n *nodeNetwork) setNetwork(now *node.Network) {
	n.mu.Lock()
	n.network = now
	n.mu.Unlock()
	if n.onDevices != nil {
		n.onDevices(now.PodDevices())
	}
}

// refresh derives the ranges again, and finds the present problems. If s is not nil, it first
// reads this node's pods from s.
func (n *nodeNetwork) refresh(s *policy.Snapshot) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s != nil && s != n.snapshot {
		n.snapshot = s
		n.readPods(s)
	}
	if n.network == nil {
		return
	}
	set, derived := n.ranges()
	if n.derive {
		was := derived
		derived = n.network.PodRanges(set, was, n.pods)
		if !slices.Equal(derived, was) {
			n.log.Debug("ranges of this node's pods follow from its routes", event.RangesDerived.Attr(), "ranges", derived)
		}
		if n.onStarting != nil {
			n.onStarting(derived)
		}
		n.starting.Set(derived)
	}
	ranges := slices.Concat(set, derived)
	n.findOutside(ranges)
	guarded := n.guarded != nil && n.guarded()
	n.settings = node.CheckSettings(n.root, n.network.PodBridges(ranges, n.pods), guarded)
	if n.uncheckedSources && !guarded {
		n.settings = append(n.settings, node.CheckSources(n.root, n.network.PodLinks(ranges, n.pods))...)
	}
	n.report()
}

// ranges returns the ranges of this node's pods in the last snapshot, and those that were
// derived from the routes.
func (n *nodeNetwork) ranges() (known, starting []netip.Prefix) {
	if n.snapshot != nil {
		known = n.snapshot.LocalRanges()
	}
	return known, n.starting.List()
}

// readPods finds the addresses of this node's pods. A pod is on this node if its host
// address is an address of this node.
func (n *nodeNetwork) readPods(s *policy.Snapshot) {
	n.pods, n.names = n.pods[:0], make(map[netip.Addr]string)
	for addr, e := range s.Endpoints() {
		if slices.ContainsFunc(e.Hosts(), func(host netip.Addr) bool { return s.Endpoint(host).IsNode() }) {
			n.pods = append(n.pods, addr)
			n.names[addr] = e.String()
		}
	}
	slices.SortFunc(n.pods, netip.Addr.Compare)
}

// findOutside updates outside: the pods that have had an address outside of the ranges for
// longer than timeout.
func (n *nodeNetwork) findOutside(ranges []netip.Prefix) {
	now, since := time.Now(), make(map[netip.Addr]time.Time)
	n.outside = n.outside[:0]
	if !n.cluster {
		return
	}
	for _, addr := range n.pods {
		if slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(addr) }) {
			continue
		}
		since[addr] = now
		if before, ok := n.since[addr]; ok {
			since[addr] = before
		}
		if now.Sub(since[addr]) >= n.timeout {
			n.outside = append(n.outside, addr)
		}
	}
	n.since = since
}

// report logs the beginning and the end of each problem.
func (n *nodeNetwork) report() {
	for _, p := range n.settings {
		if !n.logged[p] {
			n.logged[p] = true
			n.log.Warn("a setting of the kernel lets packets between pods bypass iptables", event.SettingWrong.Attr(), "setting", p.Setting, "interface", p.Where, "problem", p.Detail, "hint", p.Hint)
		}
	}
	for p := range n.logged {
		if !slices.Contains(n.settings, p) {
			delete(n.logged, p)
			n.log.Info("a setting of the kernel no longer lets packets between pods bypass iptables", event.SettingRight.Attr(), "setting", p.Setting, "interface", p.Where)
		}
	}
	switch {
	case len(n.outside) > 0 && !n.warned:
		n.warned = true
		p := n.outsideProblem()
		n.log.Warn("pods of this node have addresses outside of its pod ranges", "where", p.Where, "problem", p.Detail, "hint", p.Hint)
	case len(n.outside) == 0 && n.warned:
		n.warned = false
		n.log.Info("all pods of this node have addresses in its pod ranges again")
	}
}

// outsideProblem describes the pods outside of all ranges.
func (n *nodeNetwork) outsideProblem() status.Problem {
	const most = 3
	var some []string
	for _, addr := range n.outside[:min(len(n.outside), most)] {
		some = append(some, fmt.Sprintf("%s of %s", addr, n.names[addr]))
	}
	if more := len(n.outside) - most; more > 0 {
		some = append(some, fmt.Sprintf("and %d more", more))
	}
	known := "there are none"
	if set, derived := n.ranges(); len(set)+len(derived) > 0 {
		known = fmt.Sprintf("they are %s", join(slices.Concat(set, derived)))
	}
	return status.Problem{
		Kind: "ranges", Where: "of this node's pods",
		Detail: fmt.Sprintf("they do not contain %s (%s): a pod that starts at such an address is open until the API reports it", strings.Join(some, ", "), known),
		Hint:   "give --pod-cidrs (podCIDRs in the chart) the ranges that this node's pods get their addresses from",
	}
}

func join(prefixes []netip.Prefix) string {
	const most = 8
	var texts []string
	for _, p := range prefixes[:min(len(prefixes), most)] {
		texts = append(texts, p.String())
	}
	if len(prefixes) > most {
		texts = append(texts, "…")
	}
	return strings.Join(texts, ", ")
}

// addTo adds the problems of kernel settings and of pods outside of all ranges to s.
func (n *nodeNetwork) addTo(s *telemetry.State, onSysctl SysctlProblems) {
	n.addSettings(s, onSysctl)
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.outside) > 0 {
		s.Problems = append(s.Problems, n.outsideProblem())
		s.PodsOutside = len(n.outside)
	}
}

// addSettings adds the problems of kernel settings to s.
func (n *nodeNetwork) addSettings(s *telemetry.State, onSysctl SysctlProblems) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.settings {
		s.Problems = append(s.Problems, status.Problem{Kind: "sysctl", Where: p.Setting + ", " + p.Where, Detail: p.Detail, Hint: p.Hint})
		if onSysctl == UnreadySysctls {
			s.Bypassed = append(s.Bypassed, p.Setting+": "+p.Detail)
		}
	}
	s.SysctlProblems = len(n.settings)
}
