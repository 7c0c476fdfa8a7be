package status

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
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
	// Unready is the reason why the agent is not ready although it enforces: the policies do not apply to
	// some packets. It is empty if there is no such reason.
	Unready string `json:"unready,omitempty"`
	// Bypass is a problem with a kernel setting that lets packets bypass the policies, if it does not make
	// the agent unready. It is empty if there is none.
	Bypass string `json:"bypass,omitempty"`
}

const (
	// maxAsked is the number of policies in a request for versions. A client asks about more policies with
	// several requests.
	maxAsked = 1000
	// MaxVersionsRequest bounds the body of a request for versions, in bytes: maxAsked names of the
	// greatest length that Kubernetes allows take less.
	MaxVersionsRequest = 512 << 10
)

// versionsRequest is the body of a request for versions.
type versionsRequest struct {
	Policies []string `json:"policies"` // in the form of RefText
}

// ReadVersionsRequest returns the policies that the body of a request for versions names.
func ReadVersionsRequest(body io.Reader) (of []policy.Ref, err error) {
	var r versionsRequest
	if err := json.NewDecoder(body).Decode(&r); err != nil {
		return nil, fmt.Errorf("read the names of policies: %w", err)
	}
	for _, text := range r.Policies {
		ref, err := ParseRef(text)
		if err != nil {
			return nil, err
		}
		of = append(of, ref)
	}
	return of, nil
}

// AskVersions asks the agent that listens on a socket which versions of the given policies are in force.
// The error wraps ErrNoAgent if no agent listens there.
func AskVersions(ctx context.Context, path string, of ...policy.Ref) (*Versions, error) {
	all := &Versions{Enforcing: true}
	for some := range slices.Chunk(of, maxAsked) {
		v, err := askVersions(ctx, path, some)
		if err != nil {
			return nil, err
		}
		all.Node, all.Enforcing = v.Node, all.Enforcing && v.Enforcing
		all.Unready, all.Bypass = cmp.Or(all.Unready, v.Unready), cmp.Or(all.Bypass, v.Bypass)
		all.Policies = append(all.Policies, v.Policies...)
	}
	return all, nil
}

// askVersions is like AskVersions, for at most maxAsked policies.
func askVersions(ctx context.Context, path string, of []policy.Ref) (*Versions, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, askTimeout, fmt.Errorf("it took longer than %v to answer", askTimeout))
	defer cancel()
	var r versionsRequest
	for _, ref := range of {
		r.Policies = append(r.Policies, RefText(ref))
	}
	text, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("ask for versions: %w", err)
	}
	body, _, err := open(ctx, path, http.MethodPost, "/versions", bytes.NewReader(text))
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
	return fmt.Errorf("%q is not the name of a policy: write NAMESPACE/NAME, admin/NAME, baseline/NAME, clusternetworkpolicy/NAME or networkpolicy/NAMESPACE/NAME", text)
}

// RefText returns the name of a policy with its kind, in the form that ParseRef reads.
func RefText(ref policy.Ref) string { return strings.ToLower(ref.Kind) + "/" + ref.String() }

// Wanted is a policy to wait for.
type Wanted struct {
	Ref policy.Ref
	// Tier is the tier that the name of a ClusterNetworkPolicy begins with, in lower case. It is empty if
	// the name does not tell the tier, and for other policies.
	Tier string
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
	name := w.Title()
	switch {
	case in != nil && !w.in(in.Tier):
		return fmt.Sprintf("%s is not in force, and %s is", name, in.Title())
	case w.Deleted && in != nil:
		return fmt.Sprintf("%s (%s) is still in force", in.Title(), in.VersionText())
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

// Missing returns the wanted policies that are not in force as wanted, and the reasons. If the policies do
// not apply to all packets of the node, these are all wanted policies, with one reason.
func (v *Versions) Missing(wanted []Wanted) (left []Wanted, why []string) {
	switch {
	case !v.Enforcing:
		return wanted, []string{"the agent does not enforce yet"}
	case v.Unready != "":
		return wanted, []string{"the agent is not ready: " + v.Unready}
	}
	in := v.byRef()
	for i := range wanted {
		if text := wanted[i].Missing(in[wanted[i].Ref]); text != "" {
			left, why = append(left, wanted[i]), append(why, text)
		}
	}
	return left, why
}

func (v *Versions) byRef() map[policy.Ref]*PolicyInForce {
	in := make(map[policy.Ref]*PolicyInForce, len(v.Policies))
	for i := range v.Policies {
		p := &v.Policies[i]
		in[policy.Ref{Kind: p.Kind, Namespace: p.Namespace, Name: p.Name}] = p
	}
	return in
}

// SetTiers sets the tiers of the wanted policies that are in force.
func (v *Versions) SetTiers(wanted []Wanted) {
	in := v.byRef()
	for i := range wanted {
		if p := in[wanted[i].Ref]; p != nil {
			wanted[i].Tier = strings.ToLower(p.Tier)
		}
	}
}

// ParseWanted reads a policy to wait for: its name in the form that ParseRef reads, and optionally
// @VERSION.
func ParseWanted(text string) (w Wanted, err error) {
	name, version, has := strings.Cut(text, "@")
	if w.Ref, err = ParseRef(name); err == nil && has && version == "" {
		err = errors.New("write the resourceVersion behind @")
	}
	w.Version = version
	switch kind, _, _ := strings.Cut(strings.ToLower(name), "/"); kind {
	case "admin", "baseline":
		if w.Ref.Namespace == "" {
			w.Tier = kind
		}
	}
	return w, err
}

// in reports whether a policy in the given tier, such as "Admin", is the wanted one.
func (w *Wanted) in(tier string) bool {
	return w.Tier == "" || strings.EqualFold(w.Tier, tier)
}

// CheckTier returns an error if the policy is in another tier, such as "Admin", than its name tells.
func (w *Wanted) CheckTier(tier string) error {
	if w.in(tier) {
		return nil
	}
	return fmt.Errorf("there is no %s: the %s is in the tier %s: write %s/%s", w.Title(), w.Ref.Object(), tier, strings.ToLower(tier), w.Ref.Name)
}

// Title returns the policy as messages name it: "default/db", "admin/platform". If the tier is not known,
// it is "clusternetworkpolicy/platform".
func (w *Wanted) Title() string {
	switch {
	case w.Tier != "":
		return w.Tier + "/" + w.Ref.Name
	case w.Ref.Namespace == "":
		return RefText(w.Ref)
	}
	return w.Ref.String()
}

// Text returns the policy in the form that ParseWanted reads. It does not tell Digest and Deleted.
func (w *Wanted) Text() string {
	name := RefText(w.Ref)
	if w.Tier != "" {
		name = w.Title()
	}
	if w.Version != "" {
		name += "@" + w.Version
	}
	return name
}
