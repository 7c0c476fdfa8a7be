package diff

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
)

// Way is a way from outside the cluster to a workload that opens or closes: because the route is new
// or gone, or because policies do not, or do, deny what its controller sends.
type Way struct {
	Opens bool
	To    string // the workload
	Port  string // of the pods, as in "TCP 8080"
	By    string // the route or the Service, as in "Ingress shop/web (shop.example.com)"
	Why   string // as in "which is new"
}

// ways are the ways to workloads of a cluster, with whether policies let in what arrives.
type ways map[Way]inventory.Access

// waysOf returns the ways of a cluster to workloads in namespaces for which within is true.
func waysOf(v *inventory.Inventory, within func(namespace string) bool) ways {
	all := make(ways)
	for _, x := range v.Exposures() {
		access, _ := v.Access(x)
		by := x.String()
		if !x.IsRoute() { // a cluster assigns addresses and ports that manifests do not have
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

// compareWays returns what opens and closes, what opens first. A new way whose senders are not known
// counts as open. Of an old one, it is then not known whether it changes.
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

// by returns what opens or closes the way.
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
