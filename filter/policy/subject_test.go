package policy_test

import (
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/clusterpolicy"
)

// subjectPolicy returns a policy of the whole cluster that denies all ingress of its subject.
func subjectPolicy(t *testing.T, name, namespaces, pods string) *policy.Policy {
	t.Helper()
	parse := func(text string) labels.Selector {
		sel, err := labels.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return sel
	}
	return &policy.Policy{
		Ref: clusterpolicy.Ref(name), Tier: policy.Admin, Subject: policy.Subject{Namespaces: parse(namespaces), Pods: parse(pods)},
		Rules: [2][]policy.Rule{filter.Ingress: {{Action: policy.Deny}}},
	}
}

// The pods that a cluster-wide policy selects follow the labels of namespaces and pods, whether
// the policy is set before or after them. The policy does not create a namespace with an empty
// name.
func TestSubjectsOfTheCluster(t *testing.T) {
	for _, tt := range []struct {
		namespaces, pods string
		selects          string // names of the selected pods, among ax, ay, bx and by
	}{
		{"", "", "ax ay bx by "},
		{"team=a", "", "ax ay "},
		{"", "app=x", "ax bx "},
		{"team=b", "app!=x", "by "},
		{"!team", "", ""},
		{"team in (a,b)", "app in (y,z)", "ay by "},
	} {
		for _, last := range []bool{false, true} {
			w := policy.NewStore()
			set := func() { w.SetPolicy(subjectPolicy(t, "p", tt.namespaces, tt.pods)) }
			if !last {
				set()
			}
			at := map[string]string{"ax": "10.0.0.1", "ay": "10.0.0.2", "bx": "10.0.0.3", "by": "10.0.0.4"}
			for name, addr := range at {
				w.SetPod(&policy.Pod{Namespace: name[:1], Name: name, Labels: labels.Set{"app": name[1:]}, Addrs: addrs(addr)})
			}
			for _, ns := range []string{"a", "b"} {
				w.SetNamespace(ns, labels.Set{"team": ns})
			}
			if last {
				set()
			}
			selected := func() (got string) {
				s, _ := w.Commit()
				for _, name := range []string{"ax", "ay", "bx", "by"} {
					if s.Endpoint(addrs(at[name])[0]).Effect(filter.Ingress) == policy.Closed {
						got += name + " "
					}
				}
				if n := s.Counts().Namespaces; n != 2 {
					t.Errorf("%d namespaces, want 2", n)
				}
				return got
			}
			if got := selected(); got != tt.selects {
				t.Errorf("%q %q (last: %t) selects %q, want %q", tt.namespaces, tt.pods, last, got, tt.selects)
			}
			for _, ns := range []string{"a", "b"} { // the labels of the namespaces change places
				w.SetNamespace(ns, labels.Set{"team": map[string]string{"a": "b", "b": "a"}[ns]})
			}
			want := map[string]string{"ax ay ": "bx by ", "by ": "ay "}[tt.selects]
			if want == "" {
				want = tt.selects
			}
			if got := selected(); got != want {
				t.Errorf("%q %q (last: %t) selects %q with other labels, want %q", tt.namespaces, tt.pods, last, got, want)
			}
			w.DeletePolicy(clusterpolicy.Ref("p"))
			if got := selected(); got != "" {
				t.Errorf("%q %q still selects %q when it is deleted", tt.namespaces, tt.pods, got)
			}
			if kept := w.Kept(); kept["selectors"]+kept["scopes"]+kept["scopes of namespaces"] > 0 {
				t.Errorf("%q %q: kept %v", tt.namespaces, tt.pods, kept)
			}
		}
	}
}
