package verdictlog_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/bench/testbed/syncbuf"
	"sluice/filter"
	"sluice/filter/flow"
	"sluice/filter/packet"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/verdictlog"
)

var (
	web = netip.MustParseAddr("10.0.0.1")
	db  = netip.MustParseAddr("fd00::2")
)

// logged is a verdict log, with the flows that it watches and the lines that it has written.
type logged struct {
	*verdictlog.Log
	flows    *flow.Log
	snapshot *policy.Snapshot
	out      syncbuf.Buffer
	settled  int
}

// settle waits until the log has read all records so far. It adds a record about a missing record, and
// waits until the log has counted it.
func (l *logged) settle(t *testing.T) {
	t.Helper()
	l.settled++
	want := l.Suppressed() + 1
	l.flows.Miss(1, time.Now().Add(time.Duration(l.settled)*time.Hour))
	for deadline := time.Now().Add(time.Minute); l.Suppressed() < want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the records are not read")
		}
	}
}

// log returns a verdict log that writes to its field out. The lines have no timestamp.
func log(level filter.LogLevel, perSecond int) *logged {
	w := policy.NewStore()
	w.SetPod(kubepod.Read(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: web.String()}}},
	}))
	s, _ := w.Commit()
	l := &logged{flows: flow.NewLog(4096, nil), snapshot: s}
	handler := slog.NewTextHandler(&l.out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
	l.Log = verdictlog.New(level, perSecond, l.flows, slog.New(handler))
	return l
}

// observe records a verdict, as the agent does.
func (l *logged) observe(p packet.Packet, v filter.Verdict) {
	e := flow.Entry{Kind: flow.Opened, Time: time.Now(), Key: p.Key, SrcPort: p.SrcPort, Verdict: v}
	if v.Action != filter.Allow {
		e.Kind = flow.Denied
	}
	e.Src, e.Dst = l.snapshot.Endpoint(p.Key.SrcAddr()), l.snapshot.Endpoint(p.Key.DstAddr())
	l.flows.Add(&e)
}

// lines logs the recorded verdicts, and returns all lines.
func (l *logged) lines(t *testing.T) string {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	stop()
	l.Run(ctx)
	return l.out.String()
}

func TestLine(t *testing.T) {
	allowed := func(d filter.Direction, policy string, rule int) filter.Side {
		return filter.Side{
			Isolation: &filter.Isolation{Direction: d, Policies: []string{policy}},
			Rule:      &filter.Rule{Policy: policy, Tier: filter.NetworkPolicyTier, Direction: d, Action: filter.RuleAccepts, Index: rule},
		}
	}
	ordered := func(tier filter.Tier, policy, name string, action filter.RuleAction, rule int) *filter.Rule {
		return &filter.Rule{Policy: policy, Name: name, Tier: tier, Direction: filter.Egress, Action: action, Index: rule}
	}
	after := func(s filter.Side, passed *filter.Rule) filter.Side {
		s.Passed = passed
		return s
	}
	denied := filter.Side{Isolation: &filter.Isolation{Direction: filter.Ingress, Policies: []string{"shop/a", "shop/b"}}}
	tcp := packet.Packet{Key: filter.NewKey(web, netip.MustParseAddr("192.0.2.9"), filter.TCP, 80), SrcPort: 40000}
	tests := []struct {
		name string
		p    packet.Packet
		v    filter.Verdict
		want string
	}{
		{
			"allowed by rules of both ends", tcp,
			filter.Verdict{Action: filter.Allow, Reason: filter.RuleAllows, Egress: allowed(filter.Egress, "shop/out", 2), Ingress: allowed(filter.Ingress, "shop/in", 0)},
			"verdict=allow reason=rule src=10.0.0.1 dst=192.0.2.9 proto=TCP sport=40000 dport=80 from=shop/web direction=ingress policy=shop/in tier=NetworkPolicy rule=ingress[0] action=accept egress_policy=shop/out egress_tier=NetworkPolicy egress_rule=egress[2] egress_action=accept",
		},
		{
			"allowed by a rule of the source", tcp,
			filter.Verdict{Action: filter.Allow, Reason: filter.RuleAllows, Egress: allowed(filter.Egress, "shop/out", 2)},
			"verdict=allow reason=rule src=10.0.0.1 dst=192.0.2.9 proto=TCP sport=40000 dport=80 from=shop/web direction=egress policy=shop/out tier=NetworkPolicy rule=egress[2] action=accept",
		},
		{
			"denied at the destination", packet.Packet{Key: filter.NewKey(web, db, filter.ICMPv6, 0)},
			filter.Verdict{Reason: filter.IngressDenied, Egress: allowed(filter.Egress, "shop/out", 2), Ingress: denied},
			"verdict=deny reason=ingress-denied src=10.0.0.1 dst=fd00::2 proto=ICMPv6 from=shop/web direction=ingress policy=shop/a,shop/b tier=NetworkPolicy",
		},
		{
			"opaque, not isolated", packet.Packet{Key: filter.Key{Src: web.As16(), Dst: db.As16(), Protocol: filter.TCP}},
			filter.Verdict{Action: filter.Allow, Reason: filter.NotIsolated},
			"verdict=allow reason=not-isolated src=10.0.0.1 dst=fd00::2 proto=TCP transport=opaque from=shop/web",
		},
		{
			"denied by an ordered rule", tcp,
			filter.Verdict{Reason: filter.EgressDenied, Egress: filter.Side{Rule: ordered(filter.AdminTier, "platform", "quarantine", filter.RuleDenies, 1)}, Ingress: denied},
			`verdict=deny reason=egress-denied src=10.0.0.1 dst=192.0.2.9 proto=TCP sport=40000 dport=80 from=shop/web direction=egress policy=admin/platform tier=Admin rule=egress[1] rule_name=quarantine action=deny`,
		},
		{
			"passed, then allowed by a rule", tcp,
			filter.Verdict{Action: filter.Allow, Reason: filter.RuleAllows, Egress: after(allowed(filter.Egress, "shop/out", 2), ordered(filter.AdminTier, "platform", "to-teams", filter.RulePasses, 1))},
			`verdict=allow reason=rule src=10.0.0.1 dst=192.0.2.9 proto=TCP sport=40000 dport=80 from=shop/web direction=egress policy=shop/out tier=NetworkPolicy rule=egress[2] action=accept passed="admin/platform egress[1] to-teams"`,
		},
		{
			"passed, then denied by a rule without a name", tcp,
			filter.Verdict{Reason: filter.EgressDenied, Egress: after(filter.Side{Rule: ordered(filter.BaselineTier, "closed", "", filter.RuleDenies, 0)}, ordered(filter.AdminTier, "platform", "", filter.RulePasses, 3))},
			`verdict=deny reason=egress-denied src=10.0.0.1 dst=192.0.2.9 proto=TCP sport=40000 dport=80 from=shop/web direction=egress policy=baseline/closed tier=Baseline rule=egress[0] action=deny passed="admin/platform egress[3]"`,
		},
		{
			"passed, and no other policy", tcp,
			filter.Verdict{Action: filter.Allow, Reason: filter.NotDenied, Egress: after(filter.Side{}, ordered(filter.AdminTier, "platform", "", filter.RulePasses, 3))},
			`verdict=allow reason=not-denied src=10.0.0.1 dst=192.0.2.9 proto=TCP sport=40000 dport=80 from=shop/web direction=egress passed="admin/platform egress[3]"`,
		},
		{
			"a header that cannot be read", packet.Packet{Key: filter.Key{Src: tcp.Key.Src, Dst: tcp.Key.Dst, Protocol: filter.TCP}},
			filter.Verdict{Reason: filter.Malformed},
			`verdict=deny reason=malformed src=10.0.0.1 dst=192.0.2.9 proto=TCP transport=opaque from=shop/web`,
		},
		{"malformed", packet.Packet{}, filter.Verdict{Reason: filter.Malformed}, "verdict=deny reason=malformed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := log(filter.LogAll, 0)
			l.observe(tt.p, tt.v)
			if got := strings.TrimSpace(l.lines(t)); got != "level=INFO msg=verdict event=verdict "+tt.want {
				t.Errorf("%s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestLevels(t *testing.T) {
	for level, want := range map[filter.LogLevel]int{filter.LogNone: 0, filter.LogDenied: 1, filter.LogAll: 2} {
		l := log(level, 0)
		l.observe(packet.Packet{}, filter.Verdict{Action: filter.Allow})
		l.observe(packet.Packet{}, filter.Verdict{Action: filter.Deny})
		l.flows.Add(&flow.Entry{Kind: flow.Ended, Time: time.Now()})
		if got := strings.Count(l.lines(t), "\n"); got != want {
			t.Errorf("level %s: %d lines, want %d", level, got, want)
		}
	}
}

// The log watches only what the level of the node and the annotations ask for. It logs by the annotations
// that it follows.
func TestFollow(t *testing.T) {
	none, denials, all := flow.Watched{}, flow.Watched{Denials: true}, flow.Watched{Denials: true, Connections: true}
	for _, tt := range []struct {
		node    filter.LogLevel
		levels  []string // of the namespace shop, one after the other; empty without the annotation
		watched []flow.Watched
		logged  []string // verdicts of shop/web after each
	}{
		{filter.LogNone, []string{"denied", "all", "denied", "", "all", "none"}, []flow.Watched{denials, all, denials, none, all, none}, []string{"deny", "allow deny", "deny", "", "allow deny", ""}},
		{filter.LogDenied, []string{"none", "all", ""}, []flow.Watched{denials, all, denials}, []string{"", "allow deny", "deny"}},
		{filter.LogAll, []string{"none", "denied", ""}, []flow.Watched{all, all, all}, []string{"", "deny", "allow deny"}},
	} {
		l := log(tt.node, 0)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); l.Run(ctx) }()
		w := policy.NewStore()
		w.SetNamespace("shop", nil)
		for i, level := range tt.levels {
			annotations := map[string]string{policy.LogAnnotation: level}
			if level == "" {
				annotations = nil
			}
			w.SetNamespaceLog("shop", policy.ReadNamespaceLog("shop", annotations))
			s, _ := w.Commit()
			l.Follow(s.Logging())
			l.Follow(s.Logging())
			if got := l.flows.Watched(); got != tt.watched[i] {
				t.Errorf("%s, %v: watches %+v, want %+v", tt.node, tt.levels[:i+1], got, tt.watched[i])
			}
			from := len(l.out.String())
			for _, action := range []filter.Action{filter.Allow, filter.Deny} {
				l.observe(packet.Packet{Key: filter.NewKey(web, db, filter.TCP, uint16(80))}, filter.Verdict{Action: action})
			}
			if tt.watched[i] != none {
				l.settle(t)
			}
			if got := verdictsIn(l.out.String()[from:]); got != tt.logged[i] {
				t.Errorf("%s, %v: logs %q, want %q", tt.node, tt.levels[:i+1], got, tt.logged[i])
			}
		}
		stop()
		<-ended
		if l.flows.Watched() != none {
			t.Errorf("%s: watches after its end", tt.node)
		}
		s, _ := w.Commit()
		if l.Follow(s.Logging()); l.flows.Watched() != none {
			t.Errorf("%s: begins to watch after its end", tt.node)
		}
	}
}

// verdictsIn returns the verdicts of the lines, separated by spaces.
func verdictsIn(lines string) string {
	var found []string
	for line := range strings.Lines(lines) {
		if _, rest, is := strings.Cut(line, " verdict="); is {
			verdict, _, _ := strings.Cut(rest, " ")
			found = append(found, verdict)
		}
	}
	return strings.Join(found, " ")
}

// Lines over the rate limit are suppressed, counted and reported. Records that the flow log has left out
// are counted with them.
func TestRate(t *testing.T) {
	const burst, more, missed = 1000, 500, 7
	l := log(filter.LogAll, burst)
	for range burst + more {
		l.observe(packet.Packet{}, filter.Verdict{Reason: filter.Malformed})
	}
	l.flows.Miss(missed, time.Now().Add(time.Hour))
	text := l.lines(t)
	lines := strings.Count(text, "msg=verdict ")
	if lines < burst || lines == burst+more {
		t.Errorf("%d lines at a rate of %d a second", lines, burst)
	}
	suppressed := burst + more - lines + missed
	if want := fmt.Sprintf("suppressed=%d", suppressed); !strings.Contains(text, want) || l.Suppressed() != uint64(suppressed) {
		t.Errorf("the log does not contain %s, or Suppressed returns another number: %d", want, l.Suppressed())
	}
}
