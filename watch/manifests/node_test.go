package manifests

import (
	"fmt"
	"strings"
	"testing"
)

const nodeText = `
apiVersion: v1
kind: Node
metadata: {name: a.example, labels: {rack: "1"}}
spec: {podCIDRs: [10.1.0.0/24, "fd00:1::/64"]}
status: {addresses: [{type: Hostname, address: a}, {type: InternalIP, address: 192.0.2.1}, {type: ExternalIP, address: "2001:db8::1"}]}
`

// Nodes are read, alone and in lists, and are in no namespace.
func TestNodes(t *testing.T) {
	objects, problems := read(t, map[string]string{"a.yaml": nodeText, "b.yaml": "apiVersion: v1\nkind: NodeList\nitems: [{metadata: {name: b, namespace: shop}, spec: {podCIDR: 10.2.0.0/24}}]\n"})
	if len(problems) != 0 || names(objects) != "Node a.example, Node b" || len(objects.Notes) != 1 || objects.Notes[0].Field != "items[0].metadata.namespace" {
		t.Fatalf("read %q, problems %v, notes %v", names(objects), problems, objects.Notes)
	}
	a, b := objects.Nodes[0], objects.Nodes[1]
	if a.Labels["rack"] != "1" || fmt.Sprint(a.Addrs) != "[192.0.2.1 2001:db8::1]" || fmt.Sprint(a.Ranges) != "[10.1.0.0/24 fd00:1::/64]" {
		t.Errorf("node %+v", a)
	}
	if b.Name != "b" || fmt.Sprint(b.Ranges) != "[10.2.0.0/24]" {
		t.Errorf("node %+v", b)
	}
}

// Wrong values of a Node are problems with a field and a hint.
func TestBrokenNodes(t *testing.T) {
	for field, text := range map[string]string{
		"status.addresses[1].address": strings.Replace(nodeText, "192.0.2.1", "192.0.2.256", 1),
		"spec.podCIDRs[1]":            strings.Replace(nodeText, "fd00:1::/64", "fd00:1::", 1),
		"spec.podCIDR":                strings.Replace(nodeText, `podCIDRs: [10.1.0.0/24, "fd00:1::/64"]`, "podCIDR: 10.1.0.0", 1),
		"metadata.name":               strings.Replace(nodeText, "a.example", "A", 1),
		"apiVersion":                  strings.Replace(nodeText, "v1", "v2", 1),
		"kind":                        strings.Replace(nodeText, "Node", "node", 1),
	} {
		objects, problems := read(t, map[string]string{"a.yaml": text})
		if len(problems) != 1 || problems[0].Field != field || problems[0].Hint == "" || len(objects.Nodes) != 1 {
			t.Errorf("problems %v, want one at %s", problems, field)
		}
	}
	if _, problems := read(t, map[string]string{"a.yaml": nodeText, "b.yaml": nodeText}); len(problems) != 1 || !strings.Contains(problems[0].Detail, "the same object") {
		t.Errorf("problems %v, want one of a duplicate", problems)
	}
}
