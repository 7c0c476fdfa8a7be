package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/kuberoute"
	"sluice/filter/policy/netpol"
)

// digest returns a digest of the objects that were read, as in "sha256:5b1f…". It depends on the
// meaning of the objects, but not on the files that contain them, nor on their order.
func (l *loaded) digest() (string, error) {
	var all []digestItem
	add(&all, "Namespace", l.Namespaces, func(o *corev1.Namespace) (string, any) { return o.Name, labelsOf(o) })
	add(&all, "Pod", l.Pods, func(o *policy.Pod) (string, any) { return o.String(), digestPodOf(o) })
	add(&all, "Node", l.Nodes, func(o *policy.Node) (string, any) { return o.Name, digestNode{o.Labels, o.Addrs, o.Ranges} })
	add(&all, "", l.Workloads, func(o *kubepod.Workload) (string, any) {
		return o.Ref.Object(), []any{o.Owner.String(), digestPodOf(o.Pod)}
	})
	add(&all, "", l.Policies, func(o *policy.Policy) (string, any) { return o.Ref.Object(), digestPolicyOf(o) })
	add(&all, "Service", l.Services, func(o *corev1.Service) (string, any) { return o.Namespace + "/" + o.Name, o.Spec })
	add(&all, "EndpointSlice", l.EndpointSlices, func(o *discoveryv1.EndpointSlice) (string, any) { return o.Namespace + "/" + o.Name, o.Endpoints })
	add(&all, "", l.Routing.Routes, func(o *kuberoute.Route) (string, any) { return o.Ref.Object(), o })
	add(&all, "", l.Routing.Classes, func(o *kuberoute.Class) (string, any) { return o.Ref.Object(), o })
	add(&all, "", l.Routing.Gateways, func(o *kuberoute.Gateway) (string, any) { return o.Ref.Object(), o })
	add(&all, "", l.Routing.Grants, func(o *kuberoute.Grant) (string, any) { return o.Ref.Object(), o })
	for _, r := range l.podRanges {
		all = append(all, digestItem{"range of pods " + r.String(), nil})
	}
	slices.SortStableFunc(all, func(a, b digestItem) int { return strings.Compare(a.name, b.name) })
	sum := sha256.New()
	for _, o := range all {
		if err := o.write(sum); err != nil {
			return "", fmt.Errorf("compute the digest of %s: %w", o.name, err)
		}
	}
	return "sha256:" + hex.EncodeToString(sum.Sum(nil)), nil
}

// digestPod and digestNode have the fields on which answers depend. JSON omits empty fields, so that
// the digest is the same for objects from files and from a cluster.
type (
	digestPod struct {
		Labels                map[string]string  `json:",omitempty"`
		Addrs, Hosts          []netip.Addr       `json:",omitempty"`
		Ports                 []policy.NamedPort `json:",omitempty"`
		Node                  string             `json:",omitempty"`
		HostNetwork, NotReady bool               `json:",omitempty"`
		Owner                 policy.Ref
		Ended                 string `json:",omitempty"`
	}
	digestNode struct {
		Labels map[string]string `json:",omitempty"`
		Addrs  []netip.Addr      `json:",omitempty"`
		Ranges []netip.Prefix    `json:",omitempty"`
	}
)

func digestPodOf(p *policy.Pod) digestPod {
	return digestPod{p.Labels, p.Addrs, p.Hosts, p.Ports, p.Node, p.HostNetwork, p.NotReady, p.Owner, p.Ended}
}

// digestPolicyOf returns the meaning of a policy. For a NetworkPolicy without problems, this is not its
// text, because the API server adds defaults to the text.
func digestPolicyOf(p *policy.Policy) any {
	if p.Tier != policy.NetworkPolicy || len(p.Problems) > 0 {
		return p.Digest
	}
	return []any{netpol.WritePolicy(p), p.Denial}
}

// labelsOf returns the labels of a namespace, except for the one that the API server adds.
func labelsOf(o *corev1.Namespace) map[string]string {
	set := maps.Clone(o.Labels)
	if delete(set, corev1.LabelMetadataName); len(set) == 0 {
		return nil
	}
	return set
}

type digestItem struct {
	name   string
	object any
}

func (i digestItem) write(sum hash.Hash) error {
	text, err := json.Marshal(i.object)
	if err != nil {
		return err
	}
	fmt.Fprintf(sum, "%q %s\n", i.name, text)
	return nil
}

func add[T any](all *[]digestItem, kind string, list []T, of func(T) (name string, object any)) {
	for _, o := range list {
		name, object := of(o)
		*all = append(*all, digestItem{strings.TrimSpace(kind + " " + name), object})
	}
}
