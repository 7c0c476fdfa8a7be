package manifests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"

	kjson "sigs.k8s.io/json"
)

// fields is an object whose fields are not decoded yet.
type fields map[string]json.RawMessage

// mayHaveHoles matches the text of every policy that has a hole: a field that is present but
// empty. Most policies do not match, so findHoles need not decode them.
var mayHaveHoles = regexp.MustCompile(`null|\[\s*\]`)

// findHoles reports fields of rules that are present but empty, such as a list for which a
// template had no items. Such fields are legal, and allow everything: an empty list of
// ports allows every port. Only the text of the object distinguishes them from absent
// fields, because the API server drops them.
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
		return // decoding has reported the error
	}
	for i, r := range o.Spec.Ingress {
		c.holesOf(r, fmt.Sprintf("spec.ingress[%d]", i), "from", "source")
	}
	for i, r := range o.Spec.Egress {
		c.holesOf(r, fmt.Sprintf("spec.egress[%d]", i), "to", "destination")
	}
}

// holesOf reports the holes of a rule. "list" is the name of the field with the peers, "from"
// or "to", and "end" is the word for a peer, "source" or "destination".
func (c *checker) holesOf(r fields, at, list, end string) {
	if r == nil {
		c.hole(at, "it is empty and allows everything", "write {} to allow everything, or write what it is meant to allow")
	}
	if r.has(list) && empty(r[list]) {
		c.hole(at+"."+list, "it is present but empty, which allows every "+end, "if every "+end+" is meant, omit "+list+"; otherwise list them")
	}
	if r.has("ports") && empty(r["ports"]) {
		c.hole(at+".ports", "it is present but empty, which allows every port", "if every port is meant, omit ports; otherwise list them")
	}
	for i, p := range items(r["ports"]) {
		field := fmt.Sprintf("%s.ports[%d]", at, i)
		switch {
		case p == nil:
			c.hole(field, "it is empty and allows every TCP port", "write its port and protocol")
		case p.has("port") && empty(p["port"]):
			c.hole(field+".port", "it is present but empty, which allows every port of the protocol", "if every port is meant, omit port; otherwise write one")
		}
	}
	for i, p := range items(r[list]) {
		c.holesOfPeer(p, fmt.Sprintf("%s.%s[%d]", at, list, i))
	}
}

func (c *checker) holesOfPeer(p fields, at string) {
	if p.has("podSelector") && empty(p["podSelector"]) && p.has("namespaceSelector") && !empty(p["namespaceSelector"]) {
		c.hole(at+".podSelector", "it is present but empty, which selects every pod", "if every pod is meant, omit podSelector; otherwise write labels")
	}
	for _, name := range []string{"podSelector", "namespaceSelector"} {
		s := object(p[name])
		if s.has("matchLabels") && empty(s["matchLabels"]) && (!s.has("matchExpressions") || empty(s["matchExpressions"])) {
			c.hole(at+"."+name+".matchLabels", "it is present but empty, which selects everything", "if everything is meant, write "+name+": {}; otherwise write labels")
		}
	}
	if b := object(p["ipBlock"]); b.has("except") && empty(b["except"]) {
		c.hole(at+".ipBlock.except", "it is present but empty, which excludes nothing", "omit except, or list ranges of the cidr")
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

// object decodes an object. It returns nil if the value has another type.
func object(raw json.RawMessage) (f fields) {
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil
	}
	return f
}

// items decodes a list of objects. It returns nil if the value has another type.
func items(raw json.RawMessage) (list []fields) {
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil
	}
	return list
}

// empty reports whether a value is null or an empty list.
func empty(raw json.RawMessage) bool {
	raw = bytes.TrimSpace(raw)
	return bytes.Equal(raw, []byte("null")) || len(raw) > 1 && raw[0] == '[' && len(bytes.TrimSpace(raw[1:len(raw)-1])) == 0
}
