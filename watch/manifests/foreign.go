package manifests

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Kind is a kind of objects.
type Kind struct {
	Group string `json:"group,omitempty"` // without version; empty for the core
	Name  string `json:"kind"`
}

// NotRead is how many objects of a kind were passed over that may change what is
// allowed.
type NotRead struct {
	Kind
	Count int `json:"count"`
}

func (n NotRead) String() string {
	return fmt.Sprintf("%d %s of %s", n.Count, n.Name, cmp.Or(n.Group, "the core API"))
}

// TextOf is what was passed over in one line; empty if that is nothing.
func TextOf(passed []NotRead) string {
	texts := make([]string, len(passed))
	for i, n := range passed {
		texts[i] = n.String()
	}
	return strings.Join(texts, ", ")
}

// Restricting reports whether objects of the kind decide which packets pass, beside
// NetworkPolicies: every kind of policy that is named as theirs is, and some others.
func Restricting(k Kind) bool {
	name := strings.TrimSuffix(strings.TrimSuffix(k.Name, "Policies"), "Policy")
	if name != k.Name && strings.HasSuffix(strings.ToLower(name), "network") {
		return true
	}
	switch k.Name {
	case "EgressFirewall": // OVN-Kubernetes
		return k.Group == "k8s.ovn.org"
	case "SecurityGroup": // Kube-OVN
		return k.Group == "kubeovn.io"
	case "SecurityPolicy": // NSX
		return strings.HasSuffix(k.Group, "nsx.vmware.com")
	case "SecurityGroupPolicy": // Amazon
		return strings.HasSuffix(k.Group, "k8s.aws")
	case "AuthorizationPolicy": // Istio, Linkerd
		return k.Group == "security.istio.io" || k.Group == "policy.linkerd.io"
	case "MeshTrafficPermission", "TrafficPermission": // Kuma
		return k.Group == "kuma.io"
	}
	return false
}

// core reports whether the core API has had the kind: another one in it is a slip of
// the pen.
func core(kind string) bool {
	return slices.Contains([]string{
		"Binding", "ComponentStatus", "ConfigMap", "Endpoints", "Event", "LimitRange", "List", "Namespace", "Node",
		"PersistentVolume", "PersistentVolumeClaim", "Pod", "PodTemplate", "ReplicationController", "ResourceQuota",
		"Secret", "Service", "ServiceAccount", "Status", "Config", // the last one is a kubeconfig
	}, strings.TrimSuffix(kind, "List")) || kind == "List"
}

// pass notes an object that is not read.
func (p *parser) pass(k Kind, version, at string) {
	p.logger.Debug("manifest of another kind passed over", "file", p.path, "document", p.document, "at", at, "apiVersion", version, "kind", k.Name)
	if Restricting(k) || k.Group == "" && version == "v1" && !core(k.Name) {
		p.notRead = append(p.notRead, NotRead{k, 1})
	}
}

// sumNotRead adds up what was passed over, in the order in which it was found.
func sumNotRead(contents []*content) []NotRead {
	at := make(map[Kind]int)
	var all []NotRead
	for _, c := range contents {
		for _, n := range c.notRead {
			i, known := at[n.Kind]
			if !known {
				i = len(all)
				at[n.Kind] = i
				all = append(all, NotRead{Kind: n.Kind})
			}
			all[i].Count += n.Count
		}
	}
	return all
}
