package apiserver

import (
	"bytes"
	"io"
	"net/http"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"
)

// encoding is the format of the answers to a client: protobuf or JSON. For
// ClusterNetworkPolicies it is JSON in one of their versions.
type encoding struct {
	index int // of this encoding in the array encoded
	info  runtime.SerializerInfo
}

// jsonVersions are the API versions of objects in JSON. The first is for the kinds that are
// served in one version only.
var jsonVersions = [...]schema.GroupVersion{{}, schema.GroupVersion(v1beta1.GroupVersion), {Group: v1beta1.GroupName, Version: "v1alpha2"}}

// knownTypes are the types of the served objects. v1alpha2 has those of v1beta1, because the
// schemas are the same.
var knownTypes = func() *runtime.Scheme {
	s := runtime.NewScheme()
	_ = scheme.AddToScheme(s) // fails only if another type has the same name
	for _, version := range jsonVersions[1:] {
		s.AddKnownTypes(version, &v1beta1.ClusterNetworkPolicy{}, &v1beta1.ClusterNetworkPolicyList{})
		metav1.AddToGroupVersion(s, version)
	}
	return s
}()

// codecs encode as the real server does.
var codecs = serializer.NewCodecFactory(knownTypes)

func encodingFor(req *http.Request) encoding {
	index, wanted := 1, runtime.ContentTypeJSON
	if first, _, _ := strings.Cut(req.Header.Get("Accept"), ","); strings.HasPrefix(first, runtime.ContentTypeProtobuf) {
		index, wanted = 0, runtime.ContentTypeProtobuf
	}
	for i, version := range jsonVersions[1:] {
		if strings.HasPrefix(req.URL.Path, "/apis/"+version.String()+"/") {
			index, wanted = 2+i, runtime.ContentTypeJSON // a real server has no protobuf encoding for custom resources
		}
	}
	info, _ := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), wanted)
	return encoding{index, info}
}

func (e encoding) encode(o runtime.Object) ([]byte, error) {
	kinds, _, err := knownTypes.ObjectKinds(o)
	if err != nil {
		return nil, err
	}
	version := kinds[0].GroupVersion()
	if e.index > 1 {
		version = jsonVersions[e.index-1]
	}
	return runtime.Encode(codecs.EncoderForVersion(e.info.Serializer, version), o)
}

func (e encoding) answer(w http.ResponseWriter, code int, o runtime.Object) {
	var body []byte
	var err error
	if status, ok := o.(*metav1.Status); ok {
		status.Kind, status.APIVersion = "Status", "v1"
		body, err = runtime.Encode(e.info.Serializer, status)
	} else {
		body, err = e.encode(o)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", e.info.MediaType)
	w.WriteHeader(code)
	_, _ = w.Write(body) // an error means that the client is gone
}

// stream returns a function that writes framed events.
func (e encoding) stream(w http.ResponseWriter) func(*stored) error {
	contentType := e.info.MediaType
	if e.index == 0 {
		contentType += ";stream=watch"
	}
	w.Header().Set("Content-Type", contentType)
	frames := e.info.StreamSerializer.Framer.NewFrameWriter(w)
	return func(s *stored) error {
		raw, err := s.encode(e)
		if err != nil {
			return err
		}
		event := &metav1.WatchEvent{Type: string(s.event), Object: runtime.RawExtension{Raw: raw}}
		var frame bytes.Buffer
		if err := e.info.StreamSerializer.Serializer.Encode(event, &frame); err != nil {
			return err
		}
		_, err = io.Copy(frames, &frame)
		return err
	}
}

// encode returns the object in an encoding. It encodes the object only once.
func (s *stored) encode(e encoding) ([]byte, error) {
	if s.event == watch.Error {
		gone := failureStatus(http.StatusGone, metav1.StatusReasonExpired, "too old resource version")
		gone.Kind, gone.APIVersion = "Status", "v1"
		return runtime.Encode(e.info.Serializer, gone)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.encoded[e.index] == nil {
		raw, err := e.encode(s.copy()) // a copy, because the encoder briefly writes the kind into it
		if err != nil {
			return nil, err
		}
		s.encoded[e.index] = raw
	}
	return s.encoded[e.index], nil
}

// encodings returns the encodings that have been computed.
func (s *stored) encodings() encoded {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.encoded
}

// Encode encodes all objects in advance: ClusterNetworkPolicies as JSON, all others as
// protobuf. It returns the number of bytes by resource.
func (s *Server) Encode() (map[string]int, error) {
	format, _ := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	text, _ := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), runtime.ContentTypeJSON)
	sizes := make(map[string]int)
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, r := range s.resources {
		enc := encoding{0, format}
		if name == clusterPolicies {
			enc = encoding{2, text}
		}
		for _, o := range r.objects {
			raw, err := o.encode(enc)
			if err != nil {
				return nil, err
			}
			sizes[name] += len(raw)
		}
	}
	return sizes, nil
}
