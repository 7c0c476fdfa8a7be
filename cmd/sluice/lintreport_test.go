package main

import (
	"testing"

	"sluice/filter/policy/lint"
	"sluice/watch/manifests"
)

// A check has no findings if objects that matter to it could not be read.
func TestLintUncertain(t *testing.T) {
	forbidden := func(name string) loaded {
		var l loaded
		l.NotRead = []manifests.NotRead{{Kind: manifests.Kind{Name: name}, Reason: "forbidden"}}
		return l
	}
	foreign := forbidden("CiliumNetworkPolicy")
	foreign.NotRead[0].Reason = "" // an empty reason means that the kind is not supported
	var broken compiled
	broken.problems = []manifests.Problem{{Object: "NetworkPolicy shop/web"}}
	var service compiled
	service.problems = []manifests.Problem{{Object: "Service shop/web"}}
	for name, tt := range map[string]struct {
		m                 compiled
		noMatch, oneSided bool
	}{
		"all is read":      {compiled{}, false, false},
		"no pods":          {compiled{loaded: forbidden("Pod")}, true, true},
		"no policies":      {compiled{loaded: forbidden("NetworkPolicy")}, false, true},
		"other kinds":      {compiled{loaded: foreign}, false, false},
		"a broken policy":  {broken, false, true},
		"a broken Service": {service, false, false},
	} {
		if got := tt.m.uncertain(lint.NoMatch); got != tt.noMatch {
			t.Errorf("%s: no-match: %v", name, got)
		}
		if got := tt.m.uncertain(lint.OneSided); got != tt.oneSided || tt.m.uncertain(lint.OneSidedPart) != got {
			t.Errorf("%s: one-sided: %v", name, got)
		}
		if tt.m.uncertain(lint.Covered) {
			t.Errorf("%s: covered does not depend on it", name)
		}
	}
}
