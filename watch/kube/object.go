package kube

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
)

// object is an API object reduced to what decisions need. Reflectors handle it like the API
// object itself.
type object interface {
	runtime.Object
	metav1.ObjectMetaAccessor
	// id returns the object's name and, unless its kind is cluster-scoped, its namespace.
	id() types.NamespacedName
	// put adds the object to the policy store.
	put(w *policy.Store)
}

// slimMeta is the part of an object's metadata that is kept: 80 of 250 bytes.
type slimMeta struct {
	types.NamespacedName
	version string
	created metav1.Time
	ending  bool // the object is being deleted
	end     bool // the object only marks the end of a streamed list
}

func (s *slimMeta) id() types.NamespacedName { return s.NamespacedName }

// GetObjectKind returns an empty kind, because the kind is not kept.
func (*slimMeta) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// GetObjectMeta returns the metadata that a reflector reads.
func (s *slimMeta) GetObjectMeta() metav1.Object {
	m := &metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name, ResourceVersion: s.version, CreationTimestamp: s.created}
	if s.end {
		m.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	}
	return m
}

func slimMetaOf(m metav1.Object) slimMeta {
	return slimMeta{
		NamespacedName: types.NamespacedName{Namespace: interned(m.GetNamespace()), Name: m.GetName()},
		version:        m.GetResourceVersion(), created: m.GetCreationTimestamp(), ending: m.GetDeletionTimestamp() != nil,
		end: m.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true",
	}
}

// pod is a slim Pod. It takes 300 bytes, compared to 8,000 bytes for the API's type.
type pod struct {
	slimMeta
	labels *labelSet
	// noAddr is set for a pod without an address of its own: it is in the host network, has
	// ended, or has not started. The policy store removes such a pod, and needs only its name.
	noAddr bool
	node   string // name of the Node that the pod runs on
	addrs  []string
	hosts  []string
	ports  *portList
}

func slimPod(o *corev1.Pod, shared *pools) *pod {
	p := &pod{slimMeta: slimMetaOf(o)}
	finished := o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed
	p.addrs = addresses(o.Status.PodIP, o.Status.PodIPs, func(ip corev1.PodIP) string { return ip.IP })
	if p.noAddr = o.Spec.HostNetwork || finished || len(p.addrs) == 0; p.noAddr {
		p.addrs = nil
		return p
	}
	p.labels, p.node = shared.labelsOf(o.Labels), interned(o.Spec.NodeName)
	p.hosts = addresses(o.Status.HostIP, o.Status.HostIPs, func(ip corev1.HostIP) string { return ip.IP })
	var ports portText
	for i := range o.Spec.Containers {
		addPorts(&ports, &o.Spec.Containers[i])
	}
	for i := range o.Spec.InitContainers {
		c := &o.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			addPorts(&ports, c)
		}
	}
	p.ports = shared.portsIn(ports)
	return p
}

// addresses returns the addresses in the list. If the list does not contain the address in the
// parameter "one", addresses appends it: older servers set the field with a single address, but
// not the list.
func addresses[T any](one string, list []T, text func(T) string) []string {
	all := make([]string, 0, max(1, len(list)))
	for _, item := range list {
		all = append(all, text(item))
	}
	if one != "" && !slices.Contains(all, one) {
		all = append(all, one)
	}
	return all
}

func addPorts(text *portText, c *corev1.Container) {
	for _, port := range c.Ports {
		text.add([]byte(port.Name), []byte(port.Protocol), port.ContainerPort)
	}
}

// form converts the pod to the type that the policy store takes. It returns the value, not a
// pointer, so that the value stays on the stack of the caller, put.
func (p *pod) form() policy.Pod {
	o := policy.Pod{
		Namespace: p.Namespace, Name: p.Name, Labels: p.labels.of(), Node: p.node,
		Created: p.created.UnixNano(), Ending: p.ending, Ports: p.ports.of(),
	}
	for _, a := range p.addrs {
		o.Addrs = kubepod.AppendAddr(o.Addrs, a)
	}
	for _, a := range p.hosts {
		o.Hosts = kubepod.AppendAddr(o.Hosts, a)
	}
	return o
}

func (p *pod) put(w *policy.Store) {
	o := p.form()
	w.SetPod(&o)
}

// DeepCopyObject returns the object itself, which is immutable.
func (p *pod) DeepCopyObject() runtime.Object { return p }

// namespace is a slim Namespace.
type namespace struct {
	slimMeta
	labels map[string]string
	denial filter.Denial
	wrong  *policy.Problem // of the annotation that denial is from; nil if there is none
	log    policy.LogSetting
}

func slimNamespace(o *corev1.Namespace) *namespace {
	denial, wrong := policy.NamespaceDenial(o.Name, o.Annotations)
	return &namespace{slimMetaOf(o), o.Labels, denial, wrong, policy.ReadNamespaceLog(o.Name, o.Annotations)}
}

func (n *namespace) put(w *policy.Store) {
	w.SetNamespace(n.Name, n.labels)
	w.SetNamespaceDenial(n.Name, n.denial, n.wrong)
	w.SetNamespaceLog(n.Name, n.log)
}

// DeepCopyObject returns the object itself, which is immutable.
func (n *namespace) DeepCopyObject() runtime.Object { return n }

// encodedPolicy is a slim policy of any kind, with its whole spec. It is encoded on the
// reflector's goroutine, so that a large policy does not delay other updates.
type encodedPolicy struct {
	slimMeta
	policy policy.Encoded
}

func (p *encodedPolicy) put(w *policy.Store) { w.SetEncoded(p.policy) }

// DeepCopyObject returns the object itself, which is immutable.
func (p *encodedPolicy) DeepCopyObject() runtime.Object { return p }

// node is a slim Node.
type node struct {
	slimMeta
	taints []string // keys of the taints
	// text is the text form of what the policy store needs; see nodeText. Only if it differs
	// from that of the previous version, the table parses it into form. A kubelet writes the
	// status of its Node every few minutes, and mostly changes only times.
	text string
	form *policy.Node
}

func slimNode(o *corev1.Node) *node {
	n := &node{slimMeta: slimMetaOf(o)}
	var text nodeText
	for _, k := range slices.Sorted(maps.Keys(o.Labels)) {
		text.labels.add([]byte(k), []byte(o.Labels[k]))
	}
	for _, r := range o.Spec.PodCIDRs {
		text.add(rangeItem, []byte(r))
	}
	if len(o.Spec.PodCIDRs) == 0 && o.Spec.PodCIDR != "" {
		text.add(rangeItem, []byte(o.Spec.PodCIDR))
	}
	for _, a := range o.Status.Addresses {
		text.add(addressItem([]byte(a.Type)), []byte(a.Address))
	}
	n.text = text.String()
	for _, t := range o.Spec.Taints {
		n.taints = append(n.taints, interned(t.Key))
	}
	return n
}

func (n *node) put(w *policy.Store) { w.SetNodeObject(n.form) }

// DeepCopyObject returns the object itself, which is immutable.
func (n *node) DeepCopyObject() runtime.Object { return n }
