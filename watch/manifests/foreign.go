package manifests

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Kind is a kind of objects.
type Kind struct {
	Group string `json:"group,omitempty"` // API group, without the version; empty for the core API
	Name  string `json:"kind"`
}

// NotRead is a kind of which objects were not read: Sluice skips them although they may change what
// is allowed, or the user may not read them in a cluster.
type NotRead struct {
	Kind
	Count  int    `json:"count,omitempty"`  // number of skipped objects; 0 if it is not known
	Reason string `json:"reason,omitempty"` // as in "forbidden outside of namespace shop"; empty if the kind is not supported
	// Forbidden is true if the user lacks the right to list the kind in a whole cluster. Only are the
	// namespaces in which it was read nevertheless.
	Forbidden bool     `json:"-"`
	Only      []string `json:"-"`
	Effect    string   `json:"effect,omitempty"` // what this means for answers; empty if the objects may change what is allowed
}

func (n NotRead) String() string { return n.what() + n.why() }

func (n NotRead) what() string {
	text := fmt.Sprintf("%s of %s", n.Name, cmp.Or(n.Group, "the core API"))
	if n.Count > 0 {
		return fmt.Sprintf("%d %s", n.Count, text)
	}
	return text
}

func (n NotRead) why() string {
	text := ""
	if n.Reason != "" {
		text = " (" + n.Reason + ")"
	}
	if n.Effect != "" {
		text += ": " + n.Effect
	}
	return text
}

// TextOf lists the skipped objects in one line. It returns "" if there are none.
func TextOf(passed []NotRead) string { return strings.Join(LinesOf(passed), "; ") }

// LinesOf lists the kinds in lines. Kinds with the same reason and effect share a line.
func LinesOf(passed []NotRead) []string {
	var whys, whats []string
	for _, n := range passed {
		i := slices.Index(whys, n.why())
		if i < 0 {
			whys, whats = append(whys, n.why()), append(whats, n.what())
			continue
		}
		whats[i] += ", " + n.what()
	}
	for i := range whats {
		whats[i] += whys[i]
	}
	return whats
}

// Restricting reports whether objects of this kind may affect which packets are allowed, as
// NetworkPolicies do, although they are not read. It covers every kind whose name ends in
// NetworkPolicy, and some others.
func Restricting(k Kind) bool {
	if read := policyKindIn(k.Group); read != nil && read.name == k.Name {
		return false
	}
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
	case "ServerAuthorization": // Linkerd
		return k.Group == "policy.linkerd.io"
	case "ServiceIntentions": // Consul
		return k.Group == "consul.hashicorp.com"
	case "MeshTrafficPermission", "TrafficPermission": // Kuma
		return k.Group == "kuma.io"
	}
	return false
}

// core reports whether the kind belongs, or once belonged, to the core API. Any other kind
// in that API is a misspelling.
func core(kind string) bool {
	return slices.Contains([]string{
		"Binding", "ComponentStatus", "ConfigMap", "Endpoints", "Event", "LimitRange", "List", "Namespace", "Node",
		"PersistentVolume", "PersistentVolumeClaim", "Pod", "PodTemplate", "ReplicationController", "ResourceQuota",
		"Secret", "Service", "ServiceAccount", "Status", "Config", // a kubeconfig file
	}, strings.TrimSuffix(kind, "List")) || kind == "List"
}

// pass logs a skipped object, and counts it if it may affect which packets are allowed.
func (p *parser) pass(k Kind, version, at string) {
	p.logger.Debug("object of another kind skipped", "file", p.path, "document", p.document, "at", at, "apiVersion", version, "kind", k.Name)
	if Restricting(k) || k.Group == "" && version == "v1" && !core(k.Name) {
		p.notRead = append(p.notRead, NotRead{Kind: k, Count: 1})
	}
}

// sumNotRead adds up the counts of skipped objects by kind, in the order of the files.
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
