package status

import (
	"cmp"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"
)

// PolicyInForce is a policy that a node enforces.
type PolicyInForce struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	Tier      string `json:"tier,omitempty"` // Admin or Baseline; empty for a NetworkPolicy
	// Version is the resourceVersion of the object in the Kubernetes API. It is empty for an object from a
	// file.
	Version string `json:"resourceVersion,omitempty"`
	// Digest is the digest of the policy's meaning: of its spec and of the annotations that change
	// decisions.
	Digest string `json:"digest"`
	// Since is when the node has begun to enforce the policy with this digest. From then on it applies to
	// new connections, pending packets, the kernel's flow cache and connections from before.
	Since time.Time `json:"since"`
	// Pods are the pods of this node that the policy selects, as "namespace/name".
	Pods []string `json:"pods,omitempty"`
}

// Title returns the policy as messages name it: "default/db", "admin/platform".
func (p *PolicyInForce) Title() string {
	return cmp.Or(p.Namespace, strings.ToLower(p.Tier)) + "/" + p.Name
}

// VersionText returns the resourceVersion or, without one, the digest.
func (p *PolicyInForce) VersionText() string {
	if p.Version != "" {
		return "version " + p.Version
	}
	return "digest " + ShortDigest(p.Digest)
}

// ShortDigest returns the first digits of a digest, which are enough for people to compare digests.
func ShortDigest(digest string) string { return digest[:min(len(digest), 12)] }

const (
	// maxPolicies bounds the policies in the text of a status, and maxPods the pods of each.
	maxPolicies = 20
	maxPods     = 4
)

// writePolicies writes the policies as text. If all is true, it writes all policies and pods. Otherwise it
// writes a bounded number of the policies that select pods of the node, each with a bounded number of
// pods.
func (s *Status) writePolicies(b *strings.Builder, all bool) {
	here := 0
	for i := range s.Policies {
		if len(s.Policies[i].Pods) > 0 {
			here++
		}
	}
	if len(s.Policies) == 0 {
		return
	}
	fmt.Fprintf(b, "\nPolicies: %d of %d select pods of %s.\n", here, len(s.Policies), cmp.Or(s.Node, "this node"))
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	shown := 0
	for i := range s.Policies {
		p := &s.Policies[i]
		if !all && (len(p.Pods) == 0 || shown == maxPolicies) {
			continue
		}
		shown++
		fmt.Fprintf(w, "  %s\t%s, for %s\t%s\n", p.Title(), p.VersionText(), s.Ago(p.Since), podsText(p.Pods, all))
	}
	_ = w.Flush() // writing to a strings.Builder never fails
	if left := here - shown; !all && left > 0 {
		fmt.Fprintf(b, "  and %d more: see them with -o wide\n", left)
	}
}

func podsText(pods []string, all bool) string {
	if all || len(pods) <= maxPods {
		return cmp.Or(strings.Join(pods, ", "), "no pod here")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(pods[:maxPods], ", "), len(pods)-maxPods)
}
