package apiserver

import (
	"bytes"
	"io"
	"net/http"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
)

// encoding is the format of the answers to a client: protobuf or JSON.
type encoding struct {
	index int
	info  runtime.SerializerInfo
}

// codecs encode as the real server does.
var codecs = serializer.NewCodecFactory(scheme.Scheme)

func encodingFor(req *http.Request) encoding {
	index, wanted := 1, runtime.ContentTypeJSON
	if first, _, _ := strings.Cut(req.Header.Get("Accept"), ","); strings.HasPrefix(first, runtime.ContentTypeProtobuf) {
		index, wanted = 0, runtime.ContentTypeProtobuf
	}
	info, _ := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), wanted)
	return encoding{index, info}
}

func (e encoding) encode(o runtime.Object) ([]byte, error) {
	kinds, _, err := scheme.Scheme.ObjectKinds(o)
	if err != nil {
		return nil, err
	}
	return runtime.Encode(codecs.EncoderForVersion(e.info.Serializer, kinds[0].GroupVersion()), o)
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

// encodings returns the encoded object by encoding.index, nil where encode() has not computed
// it.
func (s *stored) encodings() [2][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.encoded
}

// Encode encodes all objects as protobuf in advance. It returns the number of bytes for each
// resource.
func (s *Server) Encode() (map[string]int, error) {
	info, _ := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	sizes := make(map[string]int)
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, r := range s.resources {
		for _, o := range r.objects {
			raw, err := o.encode(encoding{0, info})
			if err != nil {
				return nil, err
			}
			sizes[name] += len(raw)
		}
	}
	return sizes, nil
}
