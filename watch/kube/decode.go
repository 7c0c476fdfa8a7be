package kube

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metainternal "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// slimSerializer returns decoders that reduce each object to its slim form.
type slimSerializer struct {
	runtime.NegotiatedSerializer
	shared *pools
}

func newSlimSerializer(s runtime.NegotiatedSerializer) *slimSerializer {
	return &slimSerializer{s, newPools()}
}

// DecoderToVersion returns a decoder of slim objects.
func (s *slimSerializer) DecoderToVersion(d runtime.Decoder, gv runtime.GroupVersioner) runtime.Decoder {
	return decoder{s.NegotiatedSerializer.DecoderToVersion(d, gv), s.shared}
}

// decoder decodes objects and lists into slim objects. Nothing keeps a reference to the
// full objects.
type decoder struct {
	full   runtime.Decoder
	shared *pools
}

// Decode returns a slim object or a list of slim objects. It returns a Status or a watch
// event unchanged.
func (d decoder) Decode(data []byte, kind *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	if into == nil {
		if o := d.decodeProtobuf(data); o != nil {
			return o, kind, nil
		}
	}
	o, actual, err := d.full.Decode(data, kind, into)
	if err != nil {
		return nil, actual, err
	}
	o, err = d.slim(o)
	return o, actual, err
}

func (d decoder) slim(o runtime.Object) (runtime.Object, error) {
	switch o := o.(type) {
	case *corev1.Pod:
		return slimPod(o, d.shared), nil
	case *corev1.Namespace:
		return slimNamespace(o), nil
	case *corev1.Node:
		return slimNode(o), nil
	case *networkingv1.NetworkPolicy:
		return slimPolicy(o), nil
	case *corev1.PodList:
		return listOf(&o.ListMeta, o.Items, func(i *corev1.Pod) runtime.Object { return slimPod(i, d.shared) }), nil
	case *corev1.NamespaceList:
		return listOf(&o.ListMeta, o.Items, func(i *corev1.Namespace) runtime.Object { return slimNamespace(i) }), nil
	case *corev1.NodeList:
		return listOf(&o.ListMeta, o.Items, func(i *corev1.Node) runtime.Object { return slimNode(i) }), nil
	case *networkingv1.NetworkPolicyList:
		return listOf(&o.ListMeta, o.Items, func(i *networkingv1.NetworkPolicy) runtime.Object { return slimPolicy(i) }), nil
	case *metav1.Status, *metav1.WatchEvent:
		return o, nil
	}
	return nil, fmt.Errorf("the API server sent an unexpected %T", o)
}

func listOf[T any](m *metav1.ListMeta, items []T, slim func(*T) runtime.Object) runtime.Object {
	list := &metainternal.List{ListMeta: *m, Items: make([]runtime.Object, 0, len(items))}
	for i := range items {
		list.Items = append(list.Items, slim(&items[i]))
	}
	return list
}
