package kube

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// object is what is left of an API object when it has been trimmed to what
// decisions need. A reflector handles it as the object itself.
type object interface {
	runtime.Object
	metav1.ObjectMetaAccessor
	// id is the object's name and, where it has one, namespace.
	id() types.NamespacedName
	// put gives the object to the World.
	put(w *policy.World)
}

// slimMeta is what all objects have: of 250 bytes of metadata 80.
type slimMeta struct {
	types.NamespacedName
	version string
	created metav1.Time
	ending  bool // it is being deleted
	end     bool // no object, but the end of a list that is streamed
}

func (t *slimMeta) id() types.NamespacedName { return t.NamespacedName }

// GetObjectKind says that the kind is not among what was kept.
func (*slimMeta) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// GetObjectMeta is the metadata as a reflector asks for it.
func (t *slimMeta) GetObjectMeta() metav1.Object {
	m := &metav1.ObjectMeta{Namespace: t.Namespace, Name: t.Name, ResourceVersion: t.version, CreationTimestamp: t.created}
	if t.end {
		m.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	}
	return m
}

func slimMetaOf(m *metav1.ObjectMeta) slimMeta {
	return slimMeta{
		NamespacedName: types.NamespacedName{Namespace: interned(m.Namespace), Name: m.Name},
		version:        m.ResourceVersion, created: m.CreationTimestamp, ending: m.DeletionTimestamp != nil,
		end: m.Annotations[metav1.InitialEventsAnnotationKey] == "true",
	}
}

// pod is a trimmed Pod: 300 bytes with all that hangs on it, where the API's type
// takes 8,000.
type pod struct {
	slimMeta
	labels *labelSet
	// noAddr has no address of its own: it runs in the host's network, or has
	// finished, or has not begun. All that counts of it is its name.
	noAddr bool
	node   string // that it runs on
	addrs  []string
	hosts  []string
	ports  *portList
}

func slimPod(o *corev1.Pod, shared *pools) *pod {
	p := &pod{slimMeta: slimMetaOf(&o.ObjectMeta)}
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

// addresses is a list with the single address behind it, where older servers
// leave the list out.
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

// form is the pod in the form that the World takes.
func (p *pod) form() *policy.Pod {
	o := &policy.Pod{
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

func (p *pod) put(w *policy.World) { w.SetPod(p.form()) }

// DeepCopyObject returns the object itself: nobody changes it.
func (p *pod) DeepCopyObject() runtime.Object { return p }

// namespace is a trimmed Namespace.
type namespace struct {
	slimMeta
	labels map[string]string
}

func slimNamespace(o *corev1.Namespace) *namespace {
	return &namespace{slimMetaOf(&o.ObjectMeta), o.Labels}
}

func (n *namespace) put(w *policy.World) {
	w.SetNamespace(n.Name, n.labels)
}

// DeepCopyObject returns the object itself: nobody changes it.
func (n *namespace) DeepCopyObject() runtime.Object { return n }

// networkPolicy is a trimmed NetworkPolicy, of which the whole spec counts. It is encoded
// here, on the reflector's goroutine, so that a large one holds up no other update.
type networkPolicy struct {
	slimMeta
	policy policy.Encoded
}

func slimPolicy(o *networkingv1.NetworkPolicy) *networkPolicy {
	t := slimMetaOf(&o.ObjectMeta)
	return &networkPolicy{t, netpol.Encode(&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: t.Namespace, Name: t.Name}, Spec: o.Spec})}
}

func (p *networkPolicy) put(w *policy.World) { w.SetEncoded(p.policy) }

// DeepCopyObject returns the object itself: nobody changes it.
func (p *networkPolicy) DeepCopyObject() runtime.Object { return p }

// node is a trimmed Node.
type node struct {
	slimMeta
	ranges []string
	taints []string // their keys
}

func slimNode(o *corev1.Node) *node {
	n := &node{slimMeta: slimMetaOf(&o.ObjectMeta), ranges: o.Spec.PodCIDRs}
	if len(n.ranges) == 0 && o.Spec.PodCIDR != "" {
		n.ranges = []string{o.Spec.PodCIDR}
	}
	for _, t := range o.Spec.Taints {
		n.taints = append(n.taints, interned(t.Key))
	}
	return n
}

func (n *node) put(*policy.World) {}

// DeepCopyObject returns the object itself: nobody changes it.
func (n *node) DeepCopyObject() runtime.Object { return n }
