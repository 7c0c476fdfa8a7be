package manifests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"

	kjson "sigs.k8s.io/json"
)

// fields is an object of which nothing is known but what is written in it.
type fields map[string]json.RawMessage

// mayHaveHoles matches what findHoles looks for: most policies have none of it.
var mayHaveHoles = regexp.MustCompile(`null|\[\s*\]`)

// findHoles finds what is written and empty in a rule, as a template leaves it whose
// list was empty. It is legal, and opens the rule to everything of its kind. The API
// server drops it, so that only the text tells it from what was left out.
func (c *checker) findHoles() {
	if c.closed || !mayHaveHoles.Match(c.text) {
		return
	}
	var o struct {
		Spec struct {
			Ingress []fields `json:"ingress"`
			Egress  []fields `json:"egress"`
		} `json:"spec"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(c.text, &o); err != nil {
		return // it has been reported
	}
	for i, r := range o.Spec.Ingress {
		c.holesOf(r, fmt.Sprintf("spec.ingress[%d]", i), "from", "source")
	}
	for i, r := range o.Spec.Egress {
		c.holesOf(r, fmt.Sprintf("spec.egress[%d]", i), "to", "destination")
	}
}

// holesOf finds the holes of a rule, whose peers are called so.
func (c *checker) holesOf(r fields, at, list, end string) {
	if r == nil {
		c.hole(at, "it is empty and allows everything", "write {} if everything is meant, or write what it is to allow")
	}
	if r.has(list) && empty(r[list]) {
		c.hole(at+"."+list, "it is there and empty, which allows every "+end, "leave "+list+" out if every "+end+" is meant, or list them")
	}
	if r.has("ports") && empty(r["ports"]) {
		c.hole(at+".ports", "it is there and empty, which allows every port", "leave ports out if every port is meant, or list them")
	}
	for i, p := range items(r["ports"]) {
		field := fmt.Sprintf("%s.ports[%d]", at, i)
		switch {
		case p == nil:
			c.hole(field, "it is empty and allows every TCP port", "write its port and protocol")
		case p.has("port") && empty(p["port"]):
			c.hole(field+".port", "it is there and empty, which allows every port of the protocol", "leave port out if every port is meant, or write one")
		}
	}
	for i, p := range items(r[list]) {
		c.holesOfPeer(p, fmt.Sprintf("%s.%s[%d]", at, list, i))
	}
}

func (c *checker) holesOfPeer(p fields, at string) {
	if p.has("podSelector") && empty(p["podSelector"]) && p.has("namespaceSelector") && !empty(p["namespaceSelector"]) {
		c.hole(at+".podSelector", "it is there and empty, which selects every pod", "leave podSelector out if every pod is meant, or write labels")
	}
	for _, name := range []string{"podSelector", "namespaceSelector"} {
		s := object(p[name])
		if s.has("matchLabels") && empty(s["matchLabels"]) && (!s.has("matchExpressions") || empty(s["matchExpressions"])) {
			c.hole(at+"."+name+".matchLabels", "it is there and empty, which selects everything", "write "+name+": {} if everything is meant, or write labels")
		}
	}
	if b := object(p["ipBlock"]); b.has("except") && empty(b["except"]) {
		c.hole(at+".ipBlock.except", "it is there and empty, which takes nothing away", "leave except out, or list ranges of the cidr")
	}
}

func (c *checker) hole(field, detail, hint string) {
	c.p.holes = append(c.p.holes, Problem{
		File: c.p.path, Document: c.p.document, Object: c.object, Field: c.at + field, Detail: detail, Hint: hint,
	})
}

func (f fields) has(name string) bool {
	_, there := f[name]
	return there
}

// object reads an object; another value has no fields.
func object(raw json.RawMessage) (f fields) {
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil
	}
	return f
}

// items reads a list of objects; another value has no items.
func items(raw json.RawMessage) (list []fields) {
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil
	}
	return list
}

// empty reports whether a value is null or a list of nothing.
func empty(raw json.RawMessage) bool {
	raw = bytes.TrimSpace(raw)
	return bytes.Equal(raw, []byte("null")) || len(raw) > 1 && raw[0] == '[' && len(bytes.TrimSpace(raw[1:len(raw)-1])) == 0
}
