package kube

import (
	"fmt"
	"reflect"

	"k8s.io/apimachinery/pkg/api/meta"
	metainternal "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// slimSerializer returns decoders that reduce each object to its slim form: the fields that the
// agent uses (see object.go).
type slimSerializer struct {
	runtime.NegotiatedSerializer
	kinds  map[reflect.Type]*kind // kinds by the types of their objects and lists
	shared *pools
}

func newSlimSerializer(s runtime.NegotiatedSerializer) *slimSerializer {
	byType := make(map[reflect.Type]*kind)
	for _, k := range kinds {
		for _, t := range k.types {
			byType[reflect.TypeOf(t)] = k
		}
	}
	return &slimSerializer{s, byType, newPools()}
}

// DecoderToVersion returns a decoder of slim objects.
func (s *slimSerializer) DecoderToVersion(d runtime.Decoder, gv runtime.GroupVersioner) runtime.Decoder {
	return decoder{s.NegotiatedSerializer.DecoderToVersion(d, gv), s.kinds, s.shared}
}

// decoder decodes objects and lists into slim objects. Nothing keeps a reference to the
// full objects.
type decoder struct {
	full   runtime.Decoder
	kinds  map[reflect.Type]*kind
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
		return nil, actual, &decodeError{err}
	}
	o, err = d.slim(o)
	return o, actual, err
}

// decodeError reports that a response could not be decoded: an object does not match its type in
// the API, or the response is not from an API server.
type decodeError struct{ error }

func (e *decodeError) Unwrap() error { return e.error }

// slim reduces an object, or each object of a list, to its slim form.
func (d decoder) slim(o runtime.Object) (runtime.Object, error) {
	switch o.(type) {
	case *metav1.Status, *metav1.WatchEvent:
		return o, nil
	}
	k := d.kinds[reflect.TypeOf(o)]
	switch {
	case k == nil:
		return nil, fmt.Errorf("the API server sent an unexpected %T", o)
	case !meta.IsListType(o):
		return k.slim(o, d.shared), nil
	}
	from, err := meta.ListAccessor(o)
	if err != nil {
		return nil, err
	}
	list := &metainternal.List{
		ListMeta: metav1.ListMeta{ResourceVersion: from.GetResourceVersion(), Continue: from.GetContinue(), RemainingItemCount: from.GetRemainingItemCount()},
		Items:    make([]runtime.Object, 0, meta.LenList(o)),
	}
	return list, meta.EachListItem(o, func(item runtime.Object) error {
		list.Items = append(list.Items, k.slim(item, d.shared))
		return nil
	})
}
