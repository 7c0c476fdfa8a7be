package diff

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
)

// Way is a way from outside the cluster to a workload that opens or closes. Either its route or Service
// is new or gone, or policies begin or cease to deny the packets of its senders.
type Way struct {
	Opens bool
	To    string // the workload
	Port  string // of the pods, as in "TCP 8080"
	By    string // the route or the Service, as in "Ingress shop/web (shop.example.com)"
	Why   string // why it opens or closes, as in "which is new"
}

// ways are the ways to workloads of a cluster, with the access that policies give to their senders.
type ways map[Way]inventory.Access

// waysOf returns the ways to the workloads in namespaces for which within returns true.
func waysOf(v *inventory.Inventory, within func(namespace string) bool) ways {
	all := make(ways)
	for _, x := range v.Exposures() {
		access, _ := v.Access(x)
		by := x.String()
		if !x.IsRoute() { // leave out addresses and ports, which a cluster assigns and manifests lack
			kind, _, _ := strings.Cut(x.Means, " ")
			by = fmt.Sprintf("%s (%s)", x.By.Object(), kind)
		}
		for _, b := range x.Backends {
			name, namespace := b.Name, x.By.Namespace
			if b.Pod != nil {
				namespace = b.Pod.Namespace
			}
			if b.Workload != (policy.Ref{}) {
				name = b.Workload.String()
			}
			w := Way{To: name, Port: fmt.Sprintf("%s %d", x.Protocol(), b.Port), By: by}
			if within(namespace) {
				all[w] = max(all[w], access)
			}
		}
	}
	return all
}

// compareWays returns the ways that open or close: first those that open. A new way counts as opened,
// and one that is gone as closed, even if its senders are not known. A way of both clusters is left
// out if its senders are not known in one of them.
func compareWays(before, after ways) (all []Way) {
	add := func(w Way, opens bool, why string) {
		w.Opens, w.Why = opens, why
		all = append(all, w)
	}
	for w, is := range after {
		switch was, known := before[w]; {
		case !known && is != inventory.Denied:
			add(w, true, "which is new")
		case known && was == inventory.Denied && is == inventory.Reached:
			add(w, true, "which policies denied")
		case known && was == inventory.Reached && is == inventory.Denied:
			add(w, false, "which policies deny now")
		}
	}
	for w, was := range before {
		if _, known := after[w]; !known && was != inventory.Denied {
			add(w, false, "which is gone")
		}
	}
	slices.SortFunc(all, func(a, b Way) int {
		if a.Opens != b.Opens {
			if a.Opens {
				return -1
			}
			return 1
		}
		return cmp.Or(strings.Compare(a.To, b.To), strings.Compare(a.Port, b.Port), strings.Compare(a.By, b.By))
	})
	return all
}

// outside is the source of a way, in tables.
const outside = "outside"

// by names the route or the Service of the way, and why it opens or closes.
func (w Way) by() string { return "by " + w.By + ", " + w.Why }

// row returns the way as a row of the text.
func (w Way) row() [3]string {
	sign := "- "
	if w.Opens {
		sign = "+ "
	}
	return [3]string{sign + outside + " → " + w.To, w.Port, w.by()}
}

// waySummary counts the ways: "2 ways from outside opened, 1 closed". It is empty if there are none.
func (r *Report) waySummary() string {
	opened := 0
	for _, w := range r.Ways {
		if w.Opens {
			opened++
		}
	}
	closed := len(r.Ways) - opened
	ways := func(n int) string {
		if n == 1 {
			return "1 way from outside"
		}
		return fmt.Sprintf("%d ways from outside", n)
	}
	switch {
	case len(r.Ways) == 0:
		return ""
	case opened == 0:
		return ways(closed) + " closed"
	case closed == 0:
		return ways(opened) + " opened"
	}
	return fmt.Sprintf("%s opened, %d closed", ways(opened), closed)
}

// OpensWay reports whether a way from outside opens.
func (r *Report) OpensWay() bool {
	return slices.ContainsFunc(r.Ways, func(w Way) bool { return w.Opens })
}

// ClosesWay reports whether a way from outside closes.
func (r *Report) ClosesWay() bool {
	return slices.ContainsFunc(r.Ways, func(w Way) bool { return !w.Opens })
}
