package flow_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/flow"
	"sluice/filter/policy"
)

var start = time.Date(2026, 11, 27, 6, 0, 0, 0, time.UTC)

// numbered returns an entry that has the number n as its source port. drain returns this number.
func numbered(n int) *flow.Entry {
	return &flow.Entry{Kind: flow.Opened, Time: start.Add(time.Duration(n) * time.Millisecond), SrcPort: uint16(n)}
}

// unrecorded is the number that drain returns for an Unrecorded.
const unrecorded = 1 << 20

// drain reads the records that are there and returns their numbers. The number of a LeftOut is its
// negative count.
func drain(w *flow.Watcher) (numbers []int) {
	var into [3]flow.Entry // fewer than most tests have
	for {
		n := w.Next(context.Background(), into[:], false)
		if n == 0 {
			return numbers
		}
		for _, e := range into[:n] {
			switch e.Kind {
			case flow.LeftOut:
				numbers = append(numbers, -int(e.Count))
			case flow.Unrecorded:
				numbers = append(numbers, unrecorded)
			default:
				numbers = append(numbers, int(e.SrcPort))
			}
		}
	}
}

// A log records only while something watches. Each watcher gets the last records from before its Watch,
// and all records after it.
func TestLog(t *testing.T) {
	var switched []flow.Watched
	l := flow.NewLog(8, func(w flow.Watched) { switched = append(switched, w) })
	l.Add(numbered(1))
	first := l.Watch(10, true)
	l.Add(numbered(2))
	l.Add(numbered(3))
	second := l.Watch(1, true)
	l.Add(numbered(4))
	if got, want := drain(first), []int{2, 3, 4}; !slices.Equal(got, want) {
		t.Errorf("the first watcher reads %v, want %v", got, want)
	}
	if got, want := drain(second), []int{3, 4}; !slices.Equal(got, want) {
		t.Errorf("the second watcher reads %v, want %v", got, want)
	}
	first.Close()
	if !l.Watched().Connections {
		t.Error("not watched, although the second watcher is there")
	}
	second.Close()
	l.Add(numbered(5))
	third := l.Watch(100, true)
	if got, want := drain(third), []int{2, 3, 4, unrecorded}; !slices.Equal(got, want) {
		t.Errorf("the third watcher reads %v, want %v", got, want)
	}
	fourth := l.Watch(0, false)
	third.Close()
	fourth.Close()
	both := flow.Watched{Denials: true, Connections: true}
	if want := []flow.Watched{both, {}, both, {Denials: true}, {}}; !slices.Equal(switched, want) {
		t.Errorf("switched %v, want %v", switched, want)
	}
}

// A watcher first reads the records from before its Watch. It then reads for how long nothing has watched,
// or for how long nothing has watched connections.
func TestUnrecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := flow.NewLog(8, nil)
		denials := l.Watch(0, false)
		l.Add(&flow.Entry{Kind: flow.Denied, Time: time.Now()})
		time.Sleep(5 * time.Second)
		connections := l.Watch(8, true) // until now, only denials were recorded
		connections.Close()
		denials.Close()
		time.Sleep(time.Minute)
		again := l.Watch(8, false)
		defer again.Close()
		describer := flow.NewDescriber("node-1", func() *policy.Snapshot { return nil })
		var got []string
		for into := make([]flow.Entry, 8); ; {
			n := again.Next(t.Context(), into, false)
			if n == 0 {
				break
			}
			for i := range into[:n] {
				r := describer.Record(&into[i])
				got = append(got, fmt.Sprint(r.Event, r.Missing, r.Seconds))
			}
		}
		if want := []string{"denied0", "unrecordedconnections5", "unrecordedall60"}; !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

// Commands that only read what the log keeps do not fill the log. The times without records between them
// become one record, unless something has watched for longer than a second in between. Records about such
// times do not count when a watcher asks for the last flows.
func TestUnrecordedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := flow.NewLog(8, nil)
		w := l.Watch(0, true)
		for n := range 3 {
			l.Add(numbered(n))
		}
		w.Close()
		for range 20 {
			time.Sleep(time.Minute)
			l.Watch(1, true).Close()
		}
		w = l.Watch(2, true)
		var into [8]flow.Entry
		n := w.Next(t.Context(), into[:], false)
		w.Close()
		if n != 3 || into[0].SrcPort != 1 || into[1].SrcPort != 2 || into[2].Kind != flow.Unrecorded || into[2].Duration != 20*time.Minute {
			t.Errorf("%+v", into[:n])
		}
		w = l.Watch(0, true)
		time.Sleep(time.Minute)
		w.Close()
		time.Sleep(time.Second)
		w = l.Watch(1, true)
		defer w.Close()
		if got, want := drain(w), []int{2, unrecorded, unrecorded}; !slices.Equal(got, want) {
			t.Errorf("after a minute in which something watched: %v, want %v", got, want)
		}
	})
}

// If records are left out while a watcher waits, it gets their number after about a second, even if no
// record follows. This is so, too, if it got such a number just before.
func TestMissWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := flow.NewLog(8, nil)
		w := l.Watch(0, true)
		defer w.Close()
		go func() {
			for n := range uint64(3) {
				time.Sleep(100 * time.Millisecond)
				l.Miss(n+1, time.Now())
			}
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		var counts []uint64
		for into := make([]flow.Entry, 8); len(counts) < 2; {
			n := w.Next(ctx, into, true)
			if n == 0 {
				t.Fatalf("told %v, and no more", counts)
			}
			for _, e := range into[:n] {
				counts = append(counts, e.Count)
			}
		}
		if counts[0] != 1 || counts[1] != 5 {
			t.Errorf("told %v, want 1 and 5", counts)
		}
	})
}

// A watcher that is too slow gets the number of records that it has missed.
func TestSlowWatcher(t *testing.T) {
	l := flow.NewLog(4, nil)
	w := l.Watch(0, true)
	defer w.Close()
	for n := range 10 {
		l.Add(numbered(n + 1))
	}
	if got, want := drain(w), []int{-6, 7, 8, 9, 10}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if total, left := l.Stats(); total != 10 || left != 6 {
		t.Errorf("%d records and %d left out, want 10 and 6", total, left)
	}
}

// A watcher can begin to watch connections and cease to watch them, and reads on from where it was. It
// gets a record about the time in which connections were not recorded. Close makes Next return.
func TestWatcherChanges(t *testing.T) {
	var switched []flow.Watched
	l := flow.NewLog(8, func(w flow.Watched) { switched = append(switched, w) })
	w := l.Watch(0, false)
	l.Add(numbered(1))
	w.WatchConnections(true)
	w.WatchConnections(true)
	l.Add(numbered(2))
	w.WatchConnections(false)
	w.WatchConnections(true)
	if got, want := drain(w), []int{1, unrecorded, 2, unrecorded}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	waiting := make(chan int)
	go func() { waiting <- w.Next(t.Context(), make([]flow.Entry, 1), true) }()
	w.Close()
	if n := <-waiting; n != 0 {
		t.Errorf("Next returns %d of a closed watcher", n)
	}
	other := l.Watch(0, false)
	l.Add(numbered(3))
	if got := drain(w); len(got) > 0 {
		t.Errorf("a closed watcher reads %v", got)
	}
	other.Close()
	denials, both := flow.Watched{Denials: true}, flow.Watched{Denials: true, Connections: true}
	if want := []flow.Watched{denials, both, denials, both, {}, denials, {}}; !slices.Equal(switched, want) {
		t.Errorf("switched %v, want %v", switched, want)
	}
}

// A watcher gets LeftOuts for the records beyond the rate, and for the records that sources have missed,
// after at most a second. Each missing record is counted once.
func TestLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := flow.NewLog(100_000, nil)
		w := l.Watch(0, true)
		defer w.Close()
		const added = 50_000
		for range added {
			l.Add(&flow.Entry{Kind: flow.Opened, Time: time.Now()})
		}
		l.Add(&flow.Entry{Kind: flow.Denied, Time: time.Now()}) // denials have a rate of their own
		l.Miss(7, time.Now())
		records, denied, left := 0, 0, uint64(0)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		for into := make([]flow.Entry, 100); ; {
			n := w.Next(ctx, into, true)
			if n == 0 {
				break
			}
			for _, e := range into[:n] {
				switch e.Kind {
				case flow.LeftOut:
					left += e.Count
				case flow.Denied:
					denied++
				default:
					records++
				}
			}
		}
		if denied != 1 || records+int(left) != added+7 || records == 0 || left < 8 {
			t.Errorf("%d records, %d left out and %d denied of %d, 7 and 1", records, left, denied, added)
		}
	})
}

// Beyond the rate, the log keeps a part of the records of each second. It adds the number of the others
// about once a second, even if it keeps and leaves out records in turn. Records that Skip has left out are
// in these numbers, too.
func TestSampling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const seconds, perSecond, limit = 10, 40_000, 20_000
		l := flow.NewLog(1<<20, nil)
		w := l.Watch(0, true)
		defer w.Close()
		for i := range seconds * perSecond {
			now := time.Now()
			if i%2 == 0 && l.Skip(flow.Opened, now) {
				continue
			}
			l.Add(&flow.Entry{Kind: flow.Opened, Time: now})
			time.Sleep(time.Second / perSecond)
		}
		time.Sleep(time.Second)
		l.Miss(1, time.Now()) // makes the log add the rest of the number
		kept, told, left := 0, 0, uint64(0)
		for into := make([]flow.Entry, 1000); ; {
			n := w.Next(t.Context(), into, false)
			if n == 0 {
				break
			}
			for _, e := range into[:n] {
				if e.Kind == flow.LeftOut {
					told++
					left += e.Count
				} else {
					kept++
				}
			}
		}
		if kept+int(left) != seconds*perSecond+1 || kept < seconds*limit || kept > (seconds+2)*limit || told > 2*seconds+1 {
			t.Errorf("%d of %d records are kept and %d left out, which %d records tell", kept, seconds*perSecond, left, told)
		}
	})
}

// If a watcher waits, it gets the records of some milliseconds together. If there are records already, it
// gets them without a delay.
func TestWatcherGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := flow.NewLog(100, nil)
		w := l.Watch(0, true)
		defer w.Close()
		go func() {
			for n := range 30 {
				l.Add(numbered(n))
				time.Sleep(time.Millisecond)
			}
		}()
		into, began := make([]flow.Entry, 100), time.Now()
		n := w.Next(t.Context(), into, true)
		if took := time.Since(began); n < 5 || took > 20*time.Millisecond {
			t.Errorf("%d records after %v", n, took)
		}
		time.Sleep(time.Second)
		began = time.Now()
		if n += w.Next(t.Context(), into, true); n != 30 || time.Since(began) > 0 {
			t.Errorf("%d records after %v, want all 30 at once", n, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if n := w.Next(ctx, into, true); n != 0 {
			t.Errorf("%d records after all", n)
		}
	})
}

// Watchers come and go while records are added. No watcher counts more records than were added, whether it
// has read them or they were left out.
func TestLogConcurrently(t *testing.T) {
	l := flow.NewLog(64, nil)
	const writers, each = 4, 3000
	var writing, reading sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	keep := l.Watch(0, true) // so that something always watches
	defer keep.Close()
	for range 3 {
		reading.Go(func() {
			w := l.Watch(0, true)
			defer w.Close()
			into := make([]flow.Entry, 16)
			total := uint64(0)
			for {
				n := w.Next(ctx, into, true)
				if n == 0 {
					break
				}
				for _, e := range into[:n] {
					total += max(e.Count, 1)
				}
			}
			for n := 1; n > 0; {
				n = w.Next(ctx, into, false)
				for _, e := range into[:n] {
					total += max(e.Count, 1)
				}
			}
			if total > writers*each {
				t.Errorf("%d records of %d", total, writers*each)
			}
		})
	}
	for range writers {
		writing.Go(func() {
			for i := range each {
				l.Add(&flow.Entry{Kind: flow.Opened, Time: start.Add(time.Duration(i) * time.Second)})
			}
		})
	}
	writing.Wait()
	cancel()
	reading.Wait()
	if total, _ := l.Stats(); total != writers*each {
		t.Errorf("%d records, want %d", total, writers*each)
	}
}

// cluster returns a snapshot with the pods shop/web-1 and shop/db-0 and the node n2.
func cluster(t testing.TB) *policy.Snapshot {
	t.Helper()
	w := policy.NewStore()
	w.SetPod(&policy.Pod{
		Namespace: "shop", Name: "web-6d4cf56db6-x2k4q", Addrs: addrs("10.0.0.1"), Node: "n1",
		Labels: labels.Set{"app": "web", "pod-template-hash": "6d4cf56db6"}, Owner: policy.Ref{Kind: "ReplicaSet", Namespace: "shop", Name: "web-6d4cf56db6"},
	})
	w.SetPod(&policy.Pod{Namespace: "shop", Name: "db-0", Addrs: addrs("10.0.0.2"), Labels: labels.Set{"app": "db"}, Owner: policy.Ref{Kind: "StatefulSet", Namespace: "shop", Name: "db"}})
	w.SetNodeObject(&policy.Node{Name: "n2", Addrs: addrs("192.0.2.2")})
	w.SetNode(addrs("192.0.2.1"))
	s, _ := w.Commit()
	return s
}

func addrs(texts ...string) (all []netip.Addr) {
	for _, text := range texts {
		all = append(all, netip.MustParseAddr(text))
	}
	return all
}

// entry returns an entry about a packet, with the owners of its addresses.
func entry(s *policy.Snapshot, kind flow.Kind, src, dst string, port uint16) *flow.Entry {
	k := filter.NewKey(netip.MustParseAddr(src), netip.MustParseAddr(dst), filter.TCP, port)
	return &flow.Entry{Kind: kind, Time: start, Key: k, SrcPort: 40000, Src: s.Endpoint(k.SrcAddr()), Dst: s.Endpoint(k.DstAddr())}
}

func TestRecord(t *testing.T) {
	s := cluster(t)
	d := flow.NewDescriber("n1", func() *policy.Snapshot { return s })
	isolation := &filter.Isolation{Direction: filter.Ingress, Policies: []string{"shop/db", "shop/deny-all"}}
	rule := &filter.Rule{Policy: "platform", Name: "to-teams", Tier: filter.AdminTier, Direction: filter.Egress, Action: filter.RulePasses, Index: 1}
	denied := entry(s, flow.Denied, "10.0.0.1", "10.0.0.2", 5432)
	denied.Kernel = true
	denied.Verdict = filter.Verdict{Reason: filter.IngressDenied, Reject: true, Ingress: filter.Side{Isolation: isolation}, Egress: filter.Side{Passed: rule}}
	ended := entry(s, flow.Ended, "192.0.2.2", "10.0.0.2", 80)
	ended.Duration, ended.Idle, ended.Counted, ended.Sent = 2*time.Second, 500*time.Millisecond, true, flow.Traffic{Packets: 4, Bytes: 300}
	ended.To = netip.MustParseAddrPort("10.96.0.1:80")
	opened := entry(s, flow.Opened, "10.0.0.1", "203.0.113.9", 443)
	opened.Verdict = filter.Verdict{Action: filter.Allow, Reason: filter.RuleAllows, Egress: filter.Side{Rule: &filter.Rule{Policy: "shop/web", Tier: filter.NetworkPolicyTier, Direction: filter.Egress, Action: filter.RuleAccepts}}}
	opened.To = netip.MustParseAddrPort("203.0.113.9:443")
	own := entry(s, flow.Opened, "10.0.0.2", "192.0.2.1", 53)
	own.Verdict = filter.Verdict{Action: filter.Allow, Reason: filter.OwnNode}
	web := `{"kind":"pod","namespace":"shop","pod":"web-6d4cf56db6-x2k4q","workload":{"kind":"Deployment","name":"web"},"labels":{"app":"web","pod-template-hash":"6d4cf56db6"},"node":"n1"}`
	db := `{"kind":"pod","namespace":"shop","pod":"db-0","workload":{"kind":"StatefulSet","name":"db"},"labels":{"app":"db"}}`
	for _, test := range []struct {
		entry    *flow.Entry
		want     string
		policies string
	}{
		{
			denied,
			`{"time":"2026-11-27T06:00:00Z","node":"n1","event":"denied","answer":"reject","reason":"ingress-denied","by":"kernel","src":"10.0.0.1","sport":40000,"dst":"10.0.0.2","dport":5432,"proto":"TCP","from":` + web + `,"to":` + db +
				`,"egress":{"action":"accept","passed":{"policy":"admin/platform","rule":"egress[1]","rule_name":"to-teams"}},"ingress":{"action":"deny","policies":["shop/db","shop/deny-all"],"tier":"NetworkPolicy"}}`,
			"admin/platform shop/db shop/deny-all",
		},
		{
			ended,
			`{"time":"2026-11-27T06:00:00Z","node":"n1","event":"ended","src":"192.0.2.2","sport":40000,"dst":"10.0.0.2","dport":80,"proto":"TCP","to_service":"10.96.0.1:80","from":{"kind":"remote-node","node":"n2"},"to":` + db +
				`,"seconds":1.5,"idle_seconds":0.5,"sent":{"packets":4,"bytes":300},"received":{"packets":0,"bytes":0}}`,
			"",
		},
		{
			opened,
			`{"time":"2026-11-27T06:00:00Z","node":"n1","event":"allowed","reason":"rule","src":"10.0.0.1","sport":40000,"dst":"203.0.113.9","dport":443,"proto":"TCP","from":` + web + `,"to":{"kind":"world"},"egress":{"action":"accept","policies":["shop/web"],"tier":"NetworkPolicy","rule":"egress[0]"}}`,
			"shop/web",
		},
		{
			own,
			`{"time":"2026-11-27T06:00:00Z","node":"n1","event":"allowed","reason":"own-node","src":"10.0.0.2","sport":40000,"dst":"192.0.2.1","dport":53,"proto":"TCP","from":` + db + `,"to":{"kind":"host","node":"n1"}}`,
			"",
		},
		{&flow.Entry{Kind: flow.LeftOut, Time: start, Count: 9}, `{"time":"2026-11-27T06:00:00Z","node":"n1","event":"left-out","count":9}`, ""},
		{&flow.Entry{Kind: flow.Denied, Time: start, Verdict: filter.Verdict{Reason: filter.Malformed}}, `{"time":"2026-11-27T06:00:00Z","node":"n1","event":"denied","reason":"malformed","by":"agent"}`, ""},
	} {
		r := d.Record(test.entry)
		got, err := json.Marshal(r)
		if err != nil || string(got) != test.want {
			t.Errorf("%v\n%s, want\n%s", err, got, test.want)
		}
		if got := strings.Join(r.Policies(), " "); got != test.policies {
			t.Errorf("policies %q, want %q", got, test.policies)
		}
	}
}

// Denials are counted by source, destination, port and policies.
func TestDenials(t *testing.T) {
	s := cluster(t)
	isolation := &filter.Isolation{Policies: []string{"shop/db"}}
	at := func(src string, port uint16, second int) *flow.Entry {
		e := entry(s, flow.Denied, src, "10.0.0.2", port)
		e.Time = start.Add(time.Duration(second) * time.Second)
		e.Verdict = filter.Verdict{Reason: filter.IngressDenied, Ingress: filter.Side{Isolation: isolation}}
		return e
	}
	var d flow.Denials
	d.Add(at("10.0.0.1", 80, 1))
	d.Add(at("10.0.0.1", 81, 2))
	d.Add(at("10.0.0.1", 80, 5))
	d.AddMany(at("10.0.0.1", 80, 4), 10, start)
	other := at("10.0.0.1", 80, 3)
	other.Verdict.Ingress.Isolation = &filter.Isolation{Policies: []string{"shop/other"}}
	d.Add(other)
	text := func(d *flow.Denials) (all []string) {
		for _, o := range d.All() {
			all = append(all, fmt.Sprintf("%d %dx %v-%v %s", o.Key.Port, o.Packets, o.First.Sub(start), o.Last.Sub(start), o.Verdict.Ingress.Isolation.Policies))
		}
		return all
	}
	if got, want := text(&d), []string{"80 12x 0s-5s [shop/db]", "80 1x 3s-3s [shop/other]", "81 1x 2s-2s [shop/db]"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// If a policy is updated and denies as before, its denials are still one row.
func TestDenialsOfUpdatedPolicy(t *testing.T) {
	s := cluster(t)
	var d flow.Denials
	for second, policies := range []string{"shop/db", "shop/other", "shop/db"} {
		e := entry(s, flow.Denied, "10.0.0.1", "10.0.0.2", 80)
		e.Time = start.Add(time.Duration(second) * time.Second)
		e.Verdict = filter.Verdict{Reason: filter.IngressDenied, Ingress: filter.Side{Isolation: &filter.Isolation{Policies: []string{policies}}}}
		d.Add(e)
	}
	var got []string
	for _, r := range flow.NewDescriber("node-1", func() *policy.Snapshot { return s }).Denials(d.All()) {
		got = append(got, fmt.Sprintf("%dx %v-%v %s", r.Count, r.First.Sub(start), r.Time.Sub(start), r.Why()))
	}
	if want := []string{"2x 0s-2s ingress: no rule of shop/db", "1x 1s-1s ingress: no rule of shop/other"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// A scan from many addresses outside the cluster does not displace the denials between pods. All packets
// of the scan are counted.
func TestDenialsOfStrangers(t *testing.T) {
	s := cluster(t)
	var d flow.Denials
	pods := entry(s, flow.Denied, "10.0.0.1", "10.0.0.2", 80)
	d.Add(pods)
	const scan = 2000
	for i := range scan {
		e := entry(s, flow.Denied, netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}).String(), "10.0.0.2", 22)
		e.Time = start.Add(time.Duration(i) * time.Second)
		d.Add(e)
	}
	packets, many := uint64(0), 0
	for _, o := range d.All() {
		if o.Key.Port == 22 {
			packets += o.Packets
		}
		if o.Many {
			many++
		}
	}
	if all := d.All(); len(all) > 200 || packets != scan || many != 1 || !slices.ContainsFunc(all, func(o flow.Denial) bool { return o.Key == pods.Key }) {
		t.Errorf("%d denials with %d packets, %d for many addresses", len(all), packets, many)
	}
	before := len(d.All()) // one of them is for port 80
	for port := range uint16(5000) {
		e := entry(s, flow.Denied, "10.0.0.1", "10.0.0.2", port+1)
		e.Time = start.Add(time.Duration(port) * time.Hour)
		d.Add(e)
	}
	all := d.All()
	if len(all) != 512 || all[0].Key.Port != 5000 || all[511].Key.Port != 5000-511 {
		t.Errorf("%d denials, from port %d to %d", len(all), all[0].Key.Port, all[len(all)-1].Key.Port)
	}
	if n := d.Displaced(); n != uint64(before+4999-flow.MaxDenials) {
		t.Errorf("%d displaced", n)
	}
}

// A denied packet comes from an unowned address, which then becomes the address of a known pod, and
// another packet from it is denied. This does not change how many unowned addresses can have a denial of
// their own: 128. A packet without addresses does not count as one from many addresses.
func TestDenialsOfKnownStranger(t *testing.T) {
	s := cluster(t)
	var d flow.Denials
	stranger := func(i int) *flow.Entry {
		return entry(s, flow.Denied, netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}).String(), "10.0.0.2", 22)
	}
	later := stranger(0)
	d.Add(later)
	later.Src = s.Endpoint(netip.MustParseAddr("10.0.0.1"))
	d.Add(later)
	d.Add(&flow.Entry{Kind: flow.Denied, Time: start})
	for port := range uint16(512) { // these displace the first ones
		e := entry(s, flow.Denied, "10.0.0.1", "10.0.0.2", port+1)
		e.Time = start.Add(time.Hour)
		d.Add(e)
	}
	for i := range 129 {
		e := stranger(i)
		e.Time = start.Add(2 * time.Hour)
		d.Add(e)
	}
	many := 0
	for _, o := range d.All() {
		if o.Many {
			many++
		}
	}
	if many != 1 {
		t.Errorf("%d denials are about many addresses, want the 129th only", many)
	}
}

// Neither counting a denial that is known nor adding a record allocates.
func TestAllocatesNothing(t *testing.T) {
	s := cluster(t)
	e := entry(s, flow.Denied, "10.0.0.1", "10.0.0.2", 80)
	var d flow.Denials
	d.Add(e)
	if n := testing.AllocsPerRun(100, func() { d.Add(e) }); n != 0 {
		t.Errorf("%v allocations for a denial", n)
	}
	l := flow.NewLog(16, nil)
	w := l.Watch(0, true)
	defer w.Close()
	if n := testing.AllocsPerRun(100, func() { l.Add(e) }); n != 0 {
		t.Errorf("%v allocations for a record", n)
	}
}

func BenchmarkAdd(b *testing.B) {
	e := &flow.Entry{Kind: flow.Denied, Time: start, Key: filter.NewKey(netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), filter.TCP, 80)}
	b.Run("unwatched", func(b *testing.B) {
		l := flow.NewLog(flow.DefaultBuffer, nil)
		for b.Loop() {
			l.Add(e)
		}
	})
	b.Run("watched", func(b *testing.B) {
		l := flow.NewLog(flow.DefaultBuffer, nil)
		defer l.Watch(0, true).Close()
		for b.Loop() {
			e.Time = e.Time.Add(time.Second)
			l.Add(e)
		}
	})
	b.Run("denial", func(b *testing.B) {
		var d flow.Denials
		for b.Loop() {
			d.Add(e)
		}
	})
}

// The text about a short time without records has milliseconds, so that the time does not begin and end in
// the same second.
func TestTextOfUnrecorded(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	for since, want := range map[time.Duration]string{
		300 * time.Millisecond: "(flows from 03:04:04.700 to 03:04:05.000 were not recorded)",
		time.Minute:            "(flows from 03:03:05 to 03:04:05 were not recorded)",
	} {
		if got := flow.Gap("n1", at.Add(-since), at).Text(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
