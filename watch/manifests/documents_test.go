package manifests

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"sluice/filter"

	"sigs.k8s.io/yaml"
)

// encode encodes text as UTF-16 or UTF-32 with a byte order mark.
func encode(text string, order binary.AppendByteOrder, wide bool) string {
	var out []byte
	for _, r := range "\ufeff" + text {
		if wide {
			out = order.AppendUint32(out, uint32(r))
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) {
			out = order.AppendUint16(out, unit)
		}
	}
	return string(out)
}

func asJSON(t *testing.T, text string) string {
	t.Helper()
	out, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// No matter how two objects of a file are separated, both are read, or the missing one is
// reported. A policy that is skipped would isolate nothing.
func TestNothingIsSkippedSilently(t *testing.T) {
	web, shop, closed := strings.TrimPrefix(web, "\n"), strings.TrimPrefix(shop, "\n"), strings.TrimPrefix(closed, "\n")
	flow := asJSON(t, web)
	policy := asJSON(t, closed)
	both := "NetworkPolicy default/closed, Pod default/web"
	tests := map[string]struct {
		text    string
		want    string // expected names, if there are no problems
		problem string // part of the expected problem otherwise
	}{
		"three dashes":                  {web + "---\n" + closed, both, ""},
		"dashes and a comment":          {web + "--- # next\n" + closed, both, ""},
		"dashes and blanks":             {web + "---  \t \n" + closed, both, ""},
		"dashes and a flow":             {web + "---  " + policy + "\n", both, ""},
		"dashes twice":                  {web + "---\n---\n# nothing\n---\n" + closed + "---\n", both, ""},
		"an end and no beginning":       {web + "...\n" + closed, both, ""},
		"an end and a comment":          {web + "... # end\n---\n" + closed, both, ""},
		"four dashes":                   {flow + "\n----\n" + closed, "", "line 2: the text after the end"},
		"four dashes behind a block":    {web + "----\n" + closed, "", "document 1"},
		"two dashes":                    {flow + "\n--\n" + closed, "", "line 2: the text after the end"},
		"indented dashes":               {flow + "\n ---\n" + closed, "", "line 2: the text after the end"},
		"dashes of another kind":        {flow + "\n———\n" + closed, "", "line 2: the text after the end"},
		"stars":                         {flow + "\n***\n" + closed, "", "line 2"},
		"only a line end":               {flow + "\n" + closed, "", "line 2: the text after the end"},
		"less deep":                     {"  apiVersion: v1\n  kind: Namespace\n  metadata: {name: a}\n" + closed, "", "line 4: the text after the end"},
		"a text before":                 {"'hello'\n" + closed, "", "line 2: the text after the end"},
		"a block behind dashes":         {"--- apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n" + closed, "", "line 2: the text after the end"},
		"a block behind a tab":          {"---\tapiVersion: v1\nkind: Namespace\n", "", "document 1"},
		"an alias behind":               {"&a " + flow + "\n*a\n", "", "the text after the end"},
		"JSON behind JSON":              {flow + policy, both, ""},
		"JSON behind lines":             {flow + "\n\n" + policy + "\n", both, ""},
		"JSON with tabs":                {strings.ReplaceAll(indented(t, flow), "  ", "\t") + "\n" + policy, both, ""},
		"JSON and dashes":               {flow + "\n---\n" + policy + "\n" + asJSON(t, shop), "Namespace shop, " + both, ""},
		"JSON, a comma":                 {flow + ",\n" + policy, "", "the text after the end"},
		"JSON, then YAML":               {flow + "\n---\n" + closed, both, ""},
		"JSON, then YAML without":       {flow + "\n" + closed, "", "the text after the end"},
		"JSON, then a number":           {flow + " 7", "", "it is not an object"},
		"JSON, cut off":                 {flow + policy[:len(policy)-1], "", "the text after the end"},
		"JSON in brackets":              {"[" + flow + "," + policy + "]", "", "it is not an object"},
		"a key of JSON twice":           {`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"a"},"kind":"ConfigMap"}`, "", "kind"},
		"items of JSON twice":           {`{"kind":"List","items":[` + policy + `],"items":[]}`, "", "items"},
		"items in capitals":             {`{"kind":"List","apiVersion":"v1","items":[` + policy + `],"Items":[]}`, "", "Items"},
		"items misspelled":              {"apiVersion: v1\nkind: List\nitem:\n- " + policy, "", "write items"},
		"a list in the wrong case":      {"apiVersion: v1\nkind: list\nitems:\n- " + policy, "NetworkPolicy default/closed", ""},
		"a list without items":          {"apiVersion: v1\nkind: List\n", "", ""},
		"items of the wrong type":       {"apiVersion: v1\nkind: List\nitems: {a: 1}\n", "", "not a list of objects"},
		"a list of lists":               {"kind: List\nitems:\n- {kind: List, items: [" + policy + "]}\n- {apiVersion: v1, kind: PodList, items: [" + flow + "]}\n", both, ""},
		"a list of very many lists":     {strings.Repeat(`{"kind":"List","items":[`, 50) + policy + strings.Repeat("]}", 50), "", "nested in more than"},
		"kind in the wrong case":        {"apiVersion: networking.k8s.io/v1\nKind: NetworkPolicy\n", "", "kind"},
		"all in capitals":               {"APIVERSION: networking.k8s.io/v1\nKIND: NetworkPolicy\nSPEC: {}\n", "", "write "},
		"a kind of the wrong type":      {"kind: [NetworkPolicy]\n", "", "kind"},
		"anchors":                       {"apiVersion: v1\nkind: List\nitems:\n- &a " + policy + "\n- " + flow + "\nx: *a\n", both, ""},
		"an anchor of another document": {"a: &a 1\n---\n" + strings.Replace(closed, "{podSelector: {}}", "*a", 1), "", "anchor"},
		"UTF-8 with a mark":             {"\ufeff" + web + "---\n" + closed, both, ""},
		"marks inside":                  {"\ufeff" + web + "\ufeff---\n\ufeff" + closed, both, ""},
		"marks between JSON":            {"\ufeff" + flow + "\n\ufeff" + policy, both, ""},
		"UTF-16":                        {encode(web+"---\n"+closed, binary.LittleEndian, false), both, ""},
		"UTF-16, big":                   {encode(web+"---\r\n"+closed, binary.BigEndian, false), both, ""},
		"UTF-32":                        {encode(web+"---\n"+closed, binary.LittleEndian, true), both, ""},
		"UTF-32, big":                   {encode(web+"---\n"+closed, binary.BigEndian, true), both, ""},
		"UTF-16, cut off":               {encode(web+"---\n"+closed, binary.LittleEndian, false) + "x", "", "UTF-16"},
		"UTF-16 without a mark":         {encode(web+"---\n"+closed, binary.LittleEndian, false)[2:], "", "NUL"},
		"a NUL between":                 {web + "---\n\x00" + closed, "", "line 8"},
		"a NUL behind":                  {web + "---\n" + closed + "\x00", "", "NUL"},
		"not UTF-8":                     {web + "---\n" + closed + "# \xff\n", "", "is not UTF-8"},
		"not UTF-8 in JSON":             {strings.Replace(policy, "closed", "clos\xffed", 1), "", "is not UTF-8"},
		"CRLF":                          {strings.ReplaceAll(web+"---\n"+closed, "\n", "\r\n"), both, ""},
		"CR":                            {strings.ReplaceAll(web+"---\n"+closed, "\n", "\r"), both, ""},
		"CR and LF mixed":               {web + "---\r" + closed + "\r\n---\r\n" + shop, "Namespace shop, " + both, ""},
		"next line":                     {web + "\u0085---\u0085" + closed, "", "the text after the end"},
		"line separator":                {web + "\u2028---\u2028" + closed, "", "the text after the end"},
		"form feed":                     {web + "---\f\n" + closed, "", "document"},
		"directives":                    {"%YAML 1.1\n---\n" + web + "...\n%YAML 1.1\n---\n" + closed, both, ""},
		"only comments":                 {"# " + strings.ReplaceAll(closed, "\n", "\n# "), "", ""},
		"nothing":                       {"", "", ""},
		"null":                          {"---\nnull\n---\n~\n", "", ""},
		"dashes in a string":            {strings.Replace(closed, "{name: closed}", "{name: closed, annotations: {a: \"x\\n---\\ny\"}}", 1) + "---\n" + web, both, ""},
		"a bomb of aliases":             {bomb(), "", "alias"},
		"deep":                          {"a: " + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + "\n---\n" + closed, "", "depth"},
		"deep in JSON":                  {`{"a":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + "}\n" + policy, "", "depth"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			objects, problems := read(t, map[string]string{"a.yaml": tt.text})
			var texts []string
			for _, p := range problems {
				texts = append(texts, p.Error())
				if p.File == "" || p.Detail == "" || p.Hint == "" {
					t.Errorf("incomplete: %+v", p)
				}
			}
			got := strings.Join(texts, "\n")
			switch {
			case tt.problem == "" && got != "":
				t.Errorf("problems: %s", got)
			case tt.problem != "" && !strings.Contains(got, tt.problem):
				t.Errorf("problems %q, want one with %q", got, tt.problem)
			}
			if tt.problem == "" && names(objects) != tt.want {
				t.Errorf("read %q, want %q", names(objects), tt.want)
			}
		})
	}
}

func indented(t *testing.T, text string) string {
	t.Helper()
	var out bytes.Buffer
	if err := json.Indent(&out, []byte(text), "", "  "); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// bomb returns a small text that expands to billions of objects.
func bomb() string {
	text := "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
	for i := 1; i < 10; i++ {
		text += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 9), ", "))
	}
	return text
}

const policyHead = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n  podSelector: {matchLabels: {a: b}}\n"

// An unknown field of a policy has one of three effects, depending on its place. In the
// metadata or beside the spec, it is ignored, with a note. Inside a rule, it closes the
// rule: the rule allows nothing. In the spec but outside a rule, it closes the policy: the
// policy isolates its pods in both directions and allows nothing.
func TestUnknownFields(t *testing.T) {
	const closedRule, openRule = "closed", "open"
	tests := map[string]struct {
		text     string
		rules    []string // state of each ingress rule
		problems int
		notes    int
	}{
		"the status of Kubernetes 1.24": {policyHead + "  ingress: [{}]\nstatus: {}\n", []string{openRule}, 0, 0},
		"a status with conditions":      {policyHead + "  ingress: [{}]\nstatus: {conditions: [{type: Accepted}]}\n", []string{openRule}, 0, 0},
		"beside the spec":               {policyHead + "  ingress: [{}]\nextra: {a: 1}\n", []string{openRule}, 0, 1},
		"in the metadata":               {strings.Replace(policyHead, "name: p", "name: p, shard: 7", 1) + "  ingress: [{}]\n", []string{openRule}, 0, 1},
		"in one rule of three":          {policyHead + "  ingress: [{}, {form: []}, {from: []}]\n", []string{openRule, closedRule, openRule}, 1, 0},
		"in a peer":                     {policyHead + "  ingress: [{from: [{podSelector: {}}, {fqdn: a}]}, {}]\n", []string{closedRule, openRule}, 1, 0},
		"in a selector of a peer":       {policyHead + "  ingress: [{from: [{podSelector: {matchLabel: {a: b}}}]}, {}]\n", []string{closedRule, openRule}, 1, 0},
		"in a port":                     {policyHead + "  ingress: [{ports: [{port: 1, name: a}]}, {}]\n", []string{closedRule, openRule}, 1, 0},
		"of the wrong type in one rule": {policyHead + "  ingress: [{}, {ports: [{port: [80]}]}]\n", []string{openRule, closedRule}, 1, 0},
		"two rules, two kinds":          {policyHead + "  ingress: [{from: {}}, {}, {too: 1}]\n", []string{closedRule, openRule, closedRule}, 2, 0},
		"a hundred beside the spec":     {policyHead + "  ingress: [{form: []}, {}]\n" + many(150), []string{closedRule, openRule}, 1, 100},
		"a number in the metadata":      {strings.Replace(policyHead, "name: p", "name: p, labels: {a: 1}", 1) + "  ingress: [{}, {from: {}}]\n", []string{openRule, closedRule}, 2, 0},
		"in the spec":                   {policyHead + "  ingress: [{}]\n  order: 7\n", nil, 1, 0},
		"in the spec's selector":        {policyHead + "  podSelectors: {}\n  ingress: [{}]\n", nil, 1, 0},
		"a spec of the wrong type":      {"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: [1]\n", nil, 1, 0},
		"rules of the wrong type":       {policyHead + "  ingress: {from: []}\n", []string{closedRule}, 1, 0},
		"a future version":              {strings.Replace(policyHead, "/v1", "/v7", 1) + "  ingress: [{}]\n", nil, 1, 0},
		"a misspelled group":            {strings.Replace(policyHead, "networking.k8s.io", "networking.k8s", 1) + "  ingress: [{}]\n", nil, 1, 0},
		"a group without a version":     {strings.Replace(policyHead, "/v1", "", 1) + "  ingress: [{}]\n", nil, 1, 0},
		"a former version":              {strings.Replace(policyHead, "networking.k8s.io/v1", "extensions/v1beta1", 1) + "  ingress: [{}]\n", []string{openRule}, 0, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			objects, problems := read(t, map[string]string{"a.yaml": tt.text})
			if len(objects.Policies) != 1 {
				t.Fatalf("%d policies; problems: %v", len(objects.Policies), problems)
			}
			var rules []string
			for _, r := range objects.Policies[0].Rules[filter.Ingress] {
				rule := openRule
				if len(r.Peers) == 1 && r.Peers[0].Malformed != "" {
					rule = closedRule
				}
				rules = append(rules, rule)
			}
			if !slices.Equal(rules, tt.rules) {
				t.Errorf("rules are %v, want %v", rules, tt.rules)
			}
			if len(problems) != tt.problems || len(objects.Notes)+len(objects.Outdated) != tt.notes {
				t.Errorf("problems %v, %d notes; want %d and %d", problems, len(objects.Notes)+len(objects.Outdated), tt.problems, tt.notes)
			}
			want := [2]bool{filter.Ingress: true, filter.Egress: tt.rules == nil}
			if got := objects.Policies[0].Isolates; got != want {
				t.Errorf("the policy isolates %v, want %v", got, want)
			}
		})
	}
}

func many(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "a%d: 1\n", i)
	}
	return b.String()
}

// Unknown fields of objects that are not policies are only noted: they may belong to a newer
// API. The objects are read.
func TestUnknownFieldsElsewhereAreNotes(t *testing.T) {
	objects, problems := read(t, map[string]string{"a.yaml": `
apiVersion: v1
kind: Pod
metadata: {name: web, future: 1}
spec: {containers: [{name: c, ports: [{containerPort: 80, lane: fast}]}], cpuShares: {a: [1]}}
status: {podIPs: [{ip: 10.0.0.1, zone: a}], weather: fine}
other: {}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
spec: {quota: 7}
`})
	if len(problems) != 0 || names(objects) != "Namespace shop, Pod default/web" {
		t.Errorf("read %q, problems %v", names(objects), problems)
	}
	if len(objects.Notes) != 7 {
		t.Errorf("%d notes, want 7: %v", len(objects.Notes), objects.Notes)
	}
	if p := objects.Pods[0]; p.Addrs[0].String() != "10.0.0.1" || p.Ports[0].Number != 80 {
		t.Errorf("the pod is %+v", p)
	}
}

// Fields of rules that are present but empty are reported as holes: they are legal, and
// allow everything.
func TestHoles(t *testing.T) {
	tests := map[string][]string{ // ingress rule -> fields of the expected holes
		"{from: , ports: [{port: 3000}]}":                   {".from"},
		"{from: [], ports: [{port: 3000}]}":                 {".from"},
		"{from: [{podSelector: {}}], ports: }":              {".ports"},
		"{from: [{podSelector: {}}], ports: [ ]}":           {".ports"},
		"{from: , ports: }":                                 {".from", ".ports"},
		"null":                                              {""},
		"{ports: [null, {port: 1}]}":                        {".ports[0]"},
		"{ports: [{port: , protocol: UDP}]}":                {".ports[0].port"},
		"{from: [{namespaceSelector: {}, podSelector: }]}":  {".from[0].podSelector"},
		"{from: [{podSelector: {matchLabels: }}]}":          {".from[0].podSelector.matchLabels"},
		"{from: [{namespaceSelector: {matchLabels: }}]}":    {".from[0].namespaceSelector.matchLabels"},
		"{from: [{ipBlock: {cidr: 10.0.0.0/8, except: }}]}": {".from[0].ipBlock.except"},
		"{}":                                     nil,
		"{from: [{podSelector: {}}]}":            nil,
		"{ports: [{port: 53}, {protocol: UDP}]}": nil,
		"{from: [{podSelector: {matchLabels: , matchExpressions: [{key: a, operator: Exists}]}}]}": nil,
		"{from: [{podSelector: {matchLabels: {}}}]}":                                               nil,
	}
	for rule, want := range tests {
		t.Run(rule, func(t *testing.T) {
			objects, problems := read(t, map[string]string{"a.yaml": policyHead + "  ingress:\n  - {}\n  - " + rule + "\n"})
			var got []string
			for _, h := range objects.Holes {
				got = append(got, strings.TrimPrefix(h.Field, "spec.ingress[1]"))
				if h.Object != "NetworkPolicy default/p" || h.Document != 1 || h.Detail == "" || h.Hint == "" {
					t.Errorf("incomplete: %+v", h)
				}
			}
			if !slices.Equal(got, want) || len(problems) != 0 {
				t.Errorf("holes at %q, want %q; problems %v", got, want, problems)
			}
		})
	}
	objects, _ := read(t, map[string]string{"a.yaml": policyHead + "  egress: [{to: []}]\n"})
	if len(objects.Holes) != 1 || objects.Holes[0].Field != "spec.egress[0].to" {
		t.Errorf("holes of egress: %v", objects.Holes)
	}
}

// Objects of other kinds are counted if they may affect decisions.
func TestNotRead(t *testing.T) {
	object := func(apiVersion, kind string) string {
		return "---\napiVersion: " + apiVersion + "\nkind: " + kind + "\nmetadata: {name: a}\n"
	}
	objects, problems := read(t, map[string]string{
		"a.yaml": object("projectcalico.org/v3", "NetworkPolicy") + object("cilium.io/v2", "CiliumNetworkPolicy") +
			object("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy") + object("apps/v1", "Deployment"),
		"b.yaml": object("crd.projectcalico.org/v1", "GlobalNetworkPolicy") + object("cilium.io/v2", "CiliumNetworkPolicy") +
			object("k8s.ovn.org/v1", "EgressFirewall") + object("crd.antrea.io/v1alpha1", "ClusterNetworkPolicy") +
			object("networking.gke.io/v1alpha1", "FQDNNetworkPolicy") + object("crd.antrea.io/v1beta1", "NetworkPolicy") +
			object("v1", "ConfigMap") + object("v1", "Podd") + object("policy/v1", "PodDisruptionBudget") + object("networking.k8s.io/v1", "Ingress"),
		"c.yaml": "apiVersion: projectcalico.org/v3\nkind: NetworkPolicyList\nitems: [{metadata: {name: b}}, {metadata: {name: c}}]\n",
	})
	const want = "3 NetworkPolicy of projectcalico.org, 2 CiliumNetworkPolicy of cilium.io, 1 AdminNetworkPolicy of policy.networking.k8s.io, " +
		"1 GlobalNetworkPolicy of crd.projectcalico.org, 1 EgressFirewall of k8s.ovn.org, 1 ClusterNetworkPolicy of crd.antrea.io, " +
		"1 FQDNNetworkPolicy of networking.gke.io, 1 NetworkPolicy of crd.antrea.io, 1 Podd of the core API"
	if got := TextOf(objects.NotRead); got != want {
		t.Errorf("not read: %s\nwant:     %s", got, want)
	}
	if len(problems) != 0 {
		t.Errorf("problems: %v", problems)
	}
}

// FuzzParse checks that no input makes the parser lose a document silently. It appends a
// policy to the input. The parser must return this policy or report a problem, unless the
// policy may be part of the input's last comment or scalar (see swallowed). Each problem,
// note and hole must have a detail and a hint.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		web, shop, closed, "{", "--- a\n...\n---", `{"kind":"List","items":[{}]}`, web + "----\n" + closed, `{"a":1}{"b":2}`,
		"{a: b}\n----\nc: d\n", "\ufeff" + closed, encode(closed, binary.LittleEndian, false), strings.ReplaceAll(web+"---"+closed, "\n", "\r"),
		"  a: b\nc: d\n", closed + "status: {}\n", policyHead + "  ingress: [{from: , ports: []}, null]\n", "&a {a: b}\n*a\n",
		"apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\n", bomb(),
		clusterPolicy("  ingress: [{action: Accept, from: [null, {namespaces: {matchLabels: {a: }}}], protocols: []}, 7]\n  egress: [{action: Pass, to: [{networks: [a]}]}]\n"), nodeText,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		alone := parse("f", data, reading{templates: true}, slog.New(slog.DiscardHandler))
		for _, mark := range []string{"\n---\n", "\r---\r", "\n"} {
			c := parse("f", slices.Concat(data, []byte(mark+closed)), reading{templates: true}, slog.New(slog.DiscardHandler))
			for _, p := range slices.Concat(c.problems, c.notes, c.holes) {
				if p.Detail == "" || p.Hint == "" {
					t.Errorf("incomplete: %+v", p)
				}
			}
			found := slices.ContainsFunc(c.items, func(it *item) bool { return it.name == "NetworkPolicy default/closed" })
			if !found && len(c.problems) == 0 && bytes.Equal(bytes.TrimRight(data, " \n"), data) && !swallowed(data) {
				t.Errorf("the policy after %q was lost; without the policy there are %d problems", data, len(alone.problems))
			}
		}
	})
}

// swallowed reports whether an object that is appended to data may become part of a comment
// or of an open scalar. It returns true in case of doubt.
func swallowed(data []byte) bool {
	return bytes.ContainsAny(data, "#|>'\"%:?-")
}
