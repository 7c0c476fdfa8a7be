package manifests

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"sluice/filter/policy"
)

// source is a Source that runs, with the policy store that it updates.
type source struct {
	t       *testing.T
	dir     string
	updates chan func(*policy.Store)
	broken  chan []Problem
	store   *policy.Store
	count   policy.Counts // of the last snapshot
}

// run starts a Source for a directory with the given file.
func run(t *testing.T, text string) *source {
	t.Helper()
	s := &source{t: t, dir: write(t, map[string]string{"all.yaml": text}), updates: make(chan func(*policy.Store)), broken: make(chan []Problem, 100), store: policy.NewStore()}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	in := Source{Dirs: []string{s.dir}, Logger: slog.New(slog.DiscardHandler), OnProblems: func(p []Problem) { s.broken <- p }}
	go func() {
		done <- in.Run(ctx, func(u func(*policy.Store)) {
			select {
			case s.updates <- u:
			case <-ctx.Done():
			}
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run ended with %v", err)
		}
	})
	s.next()
	return s
}

// next applies the next update, or returns the problems that hold it back.
func (s *source) next() []Problem {
	s.t.Helper()
	select {
	case u := <-s.updates:
		u(s.store)
		snapshot, _ := s.store.Commit()
		s.count = snapshot.Counts()
	case p := <-s.broken:
		return p
	case <-time.After(waitTimeout):
		s.t.Fatal("no update and no problem was reported")
	}
	return nil
}

const (
	holdTeam  = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: team%s}, spec: {podSelector: {}%s}}\n"
	holdAdmin = "{apiVersion: policy.networking.k8s.io/v1beta1, kind: ClusterNetworkPolicy, metadata: {name: platform%s}, spec: {tier: Admin, priority: 1, subject: {namespaces: {}}%s}}\n"
	holdShop  = "{apiVersion: v1, kind: Namespace, metadata: {name: shop%s}}\n"
)

// A problem that changes no decision, or a correct part that Sluice does not support, does not
// hold a file back: the rest of the edit comes into force, and the policy store reports the
// problem. Any other problem of a file that was good keeps its last good state in force.
func TestWhatHoldsAFileBack(t *testing.T) {
	wrong := `, annotations: {sluice/deny-with: refuse}`
	wrongLog := `, annotations: {sluice/log: deny}`
	web := `{action: %s, to: [{domainNames: [www.example.org]}]}`
	for _, tt := range []struct {
		name, text string
		holds      bool
		problem    string // of the store or of the file; empty if there is none
	}{
		{"deny-with of a NetworkPolicy", fmt.Sprintf(holdTeam, wrong, ""), false, "has no effect"},
		{"deny-with of a ClusterNetworkPolicy", fmt.Sprintf(holdAdmin, wrong, ""), false, "has no effect"},
		{"deny-with of a Namespace", fmt.Sprintf(holdShop, wrong), false, "has no effect"},
		{"log of a NetworkPolicy", fmt.Sprintf(holdTeam, wrongLog, ""), false, "has no effect"},
		{"log of a ClusterNetworkPolicy", fmt.Sprintf(holdAdmin, wrongLog, ""), false, "has no effect"},
		{"log of a Namespace", fmt.Sprintf(holdShop, wrongLog), false, "has no effect"},
		{"another annotation", fmt.Sprintf(holdTeam, ", annotations: {sluice/deny_with: reject}", ""), false, ""},
		{"domain names", fmt.Sprintf(holdAdmin, "", ", egress: ["+fmt.Sprintf(web, "Accept")+"]"), false, "not supported"},
		{"an unknown field outside of the spec", fmt.Sprintf(holdTeam, ", labelz: {}", ""), false, ""},
		{"a former version", strings.Replace(fmt.Sprintf(holdTeam, "", ""), "networking.k8s.io/v1", "extensions/v1beta1", 1), false, ""},
		{"an empty field", fmt.Sprintf(holdTeam, "", ", ingress: [{from: []}]"), false, ""},
		{"a Service that cannot be read", "{apiVersion: v1, kind: Service, metadata: {name: x}, spec: 7}\n", false, ""},

		{"deny-with that is no string", fmt.Sprintf(holdTeam, ", annotations: {sluice/deny-with: yes}", ""), true, "true or false"},
		{"domain names in a rule that denies", fmt.Sprintf(holdAdmin, "", ", egress: ["+fmt.Sprintf(web, "Deny")+"]"), true, "only rules that accept"},
		{"a CIDR", fmt.Sprintf(holdTeam, "", ", ingress: [{from: [{ipBlock: {cidr: 10.0.0.01/8}}]}]"), true, "not a CIDR"},
		{"an unknown field", fmt.Sprintf(holdTeam, "", ", ingres: []"), true, "no such field"},
		{"no priority", strings.Replace(fmt.Sprintf(holdAdmin, "", ""), "priority: 1, ", "", 1), true, "it is missing"},
		{"an unknown version", strings.Replace(fmt.Sprintf(holdAdmin, "", ""), "v1beta1", "v1", 1), true, "is not the version"},
		{"a label", fmt.Sprintf(holdShop, ", labels: {a: '/'}"), true, "not allowed in a label"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := run(t, "# nothing\n")
			put(t, s.dir+"/all.yaml", tt.text+"---\n"+fmt.Sprintf(strings.ReplaceAll(holdTeam, "team", "other"), "", ""))
			held := s.next()
			if (held != nil) != tt.holds {
				t.Fatalf("held back: %v; problems: %v", held != nil, held)
			}
			if other := s.count.Policies > 0; other == tt.holds {
				t.Errorf("the other policy of the file is in force: %v", other)
			}
			for _, p := range held {
				if p.InForce != "the last good state of the file" || p.Effect != "" {
					t.Errorf("%v: in force %q", p, p.InForce)
				}
			}
			texts := fmt.Sprint(held, s.store.Problems())
			if !strings.Contains(texts, tt.problem) || tt.problem == "" && len(held)+len(s.store.Problems()) > 0 {
				t.Errorf("%s, want %q", texts, tt.problem)
			}
			if minor := slices.ContainsFunc(s.store.Problems(), func(p policy.Problem) bool { return !p.Minor && !p.Unsupported }); minor {
				t.Errorf("the store has %s", texts)
			}
		})
	}
}

// A problem names what is in force: while a file has never been good, its readable part.
func TestInForceOfAFileThatWasNeverGood(t *testing.T) {
	for text, want := range map[string]string{
		"a: [": "nothing of the file",
		strings.Replace(fmt.Sprintf(holdAdmin, "", ""), "priority: 1, ", "", 1): "the readable part of the file",
	} {
		dir := write(t, map[string]string{"all.yaml": text})
		problems := make(chan []Problem, 1)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		in := Source{Dirs: []string{dir}, OnProblems: func(p []Problem) { problems <- p }}
		go func() { _ = in.Run(ctx, func(func(*policy.Store)) {}) }()
		select {
		case p := <-problems:
			if len(p) != 1 || p[0].InForce != want {
				t.Errorf("%q: %+v, want in force: %s", text, p, want)
			}
		case <-time.After(waitTimeout):
			t.Fatal("no problem was reported")
		}
	}
}

// Keys of annotations that are probably meant for Sluice are notes, and so is the right key on
// a kind that it has no effect on. Values that are not strings are reported with their key.
func TestAnnotationsThatHaveNoEffect(t *testing.T) {
	for _, tt := range []struct {
		text, field string // the field is empty if there is no note
		hint        string
	}{
		{fmt.Sprintf(holdTeam, `, annotations: {sluice/deny-with: drop, deny: x, example.com/deny-with: x}`, ""), "", ""},
		{fmt.Sprintf(holdTeam, `, annotations: {sluice/deny_with: drop}`, ""), `metadata.annotations["sluice/deny_with"]`, "write sluice/deny-with"},
		{fmt.Sprintf(holdAdmin, `, annotations: {deny-with: drop}`, ""), `metadata.annotations["deny-with"]`, "write sluice/deny-with"},
		{fmt.Sprintf(holdShop, `, annotations: {sluice.dev/deny-with: drop}`), `metadata.annotations["sluice.dev/deny-with"]`, "write sluice/deny-with"},
		{fmt.Sprintf(holdShop, `, annotations: {sluice/mode: drop}`), `metadata.annotations["sluice/mode"]`, "write sluice/deny-with"},
		{fmt.Sprintf(holdTeam, `, annotations: {sluice/ignore: covered}`, ""), "", ""},
		{fmt.Sprintf(holdTeam, `, annotations: {sluice/ignores: covered}`, ""), `metadata.annotations["sluice/ignores"]`, "write sluice/ignore"},
		{`{apiVersion: v1, kind: Pod, metadata: {name: x, annotations: {sluice/ignore: covered}}}`, `metadata.annotations["sluice/ignore"]`, "annotate the policy or the namespace"},
		{fmt.Sprintf(holdTeam, `, annotations: {sluice/log: denied, log: x, logging: x, example.com/log: x, k8s.ovn.org/acl-logging: x}`, ""), "", ""},
		{fmt.Sprintf(holdAdmin, `, annotations: {sluice/log: all}`, ""), "", ""},
		{fmt.Sprintf(holdShop, `, annotations: {sluice/log: none}`), "", ""},
		{fmt.Sprintf(holdShop, `, annotations: {sluice/Log: none}`), `metadata.annotations["sluice/Log"]`, "write sluice/log"},
		{fmt.Sprintf(holdShop, `, annotations: {sluice/acl_logging: none}`), `metadata.annotations["sluice/acl_logging"]`, "write sluice/log"},
		{fmt.Sprintf(holdTeam, `, annotations: {sluice.dev/log: all}`, ""), `metadata.annotations["sluice.dev/log"]`, "write sluice/log"},
		{fmt.Sprintf(holdTeam, `, annotations: {log-verdicts: all}`, ""), `metadata.annotations["log-verdicts"]`, "write sluice/log"},
		{`{apiVersion: v1, kind: Pod, metadata: {name: x, annotations: {sluice/log: all}}}`, `metadata.annotations["sluice/log"]`, "annotate the policy or the namespace"},
		{`{apiVersion: v1, kind: Pod, metadata: {name: x, annotations: {sluice/deny-with: drop}}}`, `metadata.annotations["sluice/deny-with"]`, "annotate the policy or the namespace"},
	} {
		objects, problems := read(t, map[string]string{"a.yaml": tt.text})
		switch n := objects.Notes; {
		case len(problems) > 0 || (len(n) > 0) != (tt.field != ""):
			t.Errorf("%s: notes %v, problems %v", tt.text, n, problems)
		case len(n) > 0 && (len(n) > 1 || n[0].Field != tt.field || n[0].Hint != tt.hint):
			t.Errorf("%s: notes %v, want one about %s: %s", tt.text, n, tt.field, tt.hint)
		}
	}
	for field, text := range map[string]string{
		`metadata.annotations["sluice/deny-with"]`: fmt.Sprintf(holdTeam, `, annotations: {a: b, sluice/deny-with: yes}`, ""),
		`metadata.labels["nr"]`:                    fmt.Sprintf(holdShop, `, labels: {a: b, nr: 1}`),
		`spec.podSelector.matchLabels["nr"]`:       strings.Replace(fmt.Sprintf(holdTeam, "", ""), "podSelector: {}", "podSelector: {matchLabels: {nr: 1}}", 1),
	} {
		if _, problems := read(t, map[string]string{"a.yaml": text}); len(problems) != 1 || problems[0].Field != field {
			t.Errorf("%s: %v, want one about %s", text, problems, field)
		}
	}
}
