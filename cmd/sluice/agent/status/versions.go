package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"k8s.io/apimachinery/pkg/util/resourceversion"

	"sluice/filter/policy"
	"sluice/filter/policy/clusterpolicy"
	"sluice/filter/policy/netpol"
)

// Versions are the versions of some policies that are in force on a node.
type Versions struct {
	Node      string          `json:"node,omitempty"`
	Enforcing bool            `json:"enforcing"` // false while nothing is in force yet
	Policies  []PolicyInForce `json:"policies"`
}

// AskVersions asks the agent that listens on a socket which versions of the given policies are in force.
// The error wraps ErrNoAgent if no agent listens there.
func AskVersions(ctx context.Context, path string, of ...policy.Ref) (*Versions, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, askTimeout, fmt.Errorf("it took longer than %v to answer", askTimeout))
	defer cancel()
	query := make(url.Values)
	for _, ref := range of {
		query.Add("policy", RefText(ref))
	}
	body, err := Open(ctx, path, "/versions?"+query.Encode())
	if err != nil {
		return nil, err
	}
	defer body.Close()
	var v Versions
	if err := json.NewDecoder(body).Decode(&v); err != nil {
		return nil, fmt.Errorf("read the answer of the agent on %s: %w", path, err)
	}
	return &v, nil
}

// ParseRef reads the name of a policy, such as default/web or admin/platform. The name may begin with the
// kind, as in networkpolicy/default/web or clusternetworkpolicy/platform. It must for a NetworkPolicy in a
// namespace named admin or baseline.
func ParseRef(text string) (policy.Ref, error) {
	parts := strings.Split(text, "/")
	for _, part := range parts {
		if part == "" {
			return policy.Ref{}, errRef(text)
		}
	}
	kind := strings.ToLower(parts[0])
	switch {
	case len(parts) == 3 && (kind == "networkpolicy" || kind == "networkpolicies" || kind == "netpol"):
		return netpol.Ref(parts[1], parts[2]), nil
	case len(parts) != 2:
	case kind == "admin", kind == "baseline", kind == "clusternetworkpolicy", kind == "clusternetworkpolicies", kind == "cnp":
		return policy.Ref{Kind: clusterpolicy.Kind, Name: parts[1]}, nil
	default:
		return netpol.Ref(parts[0], parts[1]), nil
	}
	return policy.Ref{}, errRef(text)
}

func errRef(text string) error {
	return fmt.Errorf("%q is not the name of a policy: write NAMESPACE/NAME, admin/NAME, clusternetworkpolicy/NAME or networkpolicy/NAMESPACE/NAME", text)
}

// RefText returns the name of a policy with its kind, in the form that ParseRef reads.
func RefText(ref policy.Ref) string { return strings.ToLower(ref.Kind) + "/" + ref.String() }

// Wanted is a policy to wait for.
type Wanted struct {
	Ref policy.Ref
	// Version is the resourceVersion that must be in force, or a later one.
	Version string
	// Digest is the digest that must be in force. If both Version and Digest are empty, any version will
	// do.
	Digest string
	// Deleted is set if the policy must not be in force any more.
	Deleted bool
}

// Missing returns why the wanted policy is not in force as wanted; empty if it is. The parameter in is the
// version in force; nil if there is none.
func (w *Wanted) Missing(in *PolicyInForce) string {
	name := w.Ref.String()
	switch {
	case w.Deleted && in != nil:
		return fmt.Sprintf("%s (%s) is still in force", name, in.VersionText())
	case w.Deleted:
		return ""
	case in == nil:
		return name + " is not in force"
	case w.Version != "" && !sameOrLater(in.Version, w.Version):
		return fmt.Sprintf("%s: %s is in force, and not %s", name, in.VersionText(), w.Version)
	case w.Digest != "" && in.Digest != w.Digest:
		return fmt.Sprintf("%s: digest %s is in force, and not %s", name, ShortDigest(in.Digest), ShortDigest(w.Digest))
	}
	return ""
}

// sameOrLater reports whether a resourceVersion equals the wanted one or is later. If a server's
// resourceVersions are not numbers, contrary to the rule, sameOrLater only compares them for equality.
func sameOrLater(is, wanted string) bool {
	if is == wanted {
		return true
	}
	order, err := resourceversion.CompareResourceVersion(is, wanted)
	return err == nil && order > 0
}

// Missing returns a reason for each wanted policy that is not in force as wanted.
func (v *Versions) Missing(wanted []Wanted) (why []string) {
	if !v.Enforcing {
		return []string{"the agent does not enforce yet"}
	}
	in := make(map[policy.Ref]*PolicyInForce)
	for i := range v.Policies {
		p := &v.Policies[i]
		in[policy.Ref{Kind: p.Kind, Namespace: p.Namespace, Name: p.Name}] = p
	}
	for i := range wanted {
		if text := wanted[i].Missing(in[wanted[i].Ref]); text != "" {
			why = append(why, text)
		}
	}
	return why
}

// ParseWanted reads a policy to wait for: its name in the form that ParseRef reads, and optionally
// @VERSION.
func ParseWanted(text string) (w Wanted, err error) {
	name, version, has := strings.Cut(text, "@")
	if w.Ref, err = ParseRef(name); err == nil && has && version == "" {
		err = errors.New("write the resourceVersion behind @")
	}
	w.Version = version
	return w, err
}
