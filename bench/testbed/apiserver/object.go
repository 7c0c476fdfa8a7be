package apiserver

import (
	"io"
	"net/http"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// object answers get and patch of one object.
func (s *Server) object(w http.ResponseWriter, req *http.Request, r *resource, name types.NamespacedName, enc encoding) {
	var o Object
	var status *metav1.Status
	switch req.Method {
	case http.MethodGet:
		o, status = s.get(r, name)
	case http.MethodPatch:
		o, status = s.patch(r, name, req)
	default:
		status = failureStatus(http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed, "the server does not allow this method on the requested resource")
	}
	if status != nil {
		enc.answer(w, int(status.Code), status)
		return
	}
	enc.answer(w, http.StatusOK, o)
}

func (s *Server) get(r *resource, name types.NamespacedName) (Object, *metav1.Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := r.objects[name]; st != nil {
		return st.copy(), nil
	}
	return nil, failureStatus(http.StatusNotFound, metav1.StatusReasonNotFound, r.name+" "+name.String()+" not found")
}

// patch applies a JSON patch. If one of its operations fails, for example a "test", the object
// is not changed.
func (s *Server) patch(r *resource, name types.NamespacedName, req *http.Request) (Object, *metav1.Status) {
	body, err := io.ReadAll(req.Body)
	if err != nil || req.Header.Get("Content-Type") != string(types.JSONPatchType) {
		return nil, failureStatus(http.StatusUnsupportedMediaType, metav1.StatusReasonUnsupportedMediaType, "only JSON patches are served")
	}
	patch, err := jsonpatch.DecodePatch(body)
	if err != nil {
		return nil, failureStatus(http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st := r.objects[name]
	if st == nil {
		return nil, failureStatus(http.StatusNotFound, metav1.StatusReasonNotFound, r.name+" "+name.String()+" not found")
	}
	info, _ := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), runtime.ContentTypeJSON)
	text, err := encoding{1, info}.encode(st.copy())
	if err == nil {
		text, err = patch.Apply(text)
	}
	o := r.empty.DeepCopyObject().(Object)
	if err == nil {
		err = runtime.DecodeInto(codecs.UniversalDeserializer(), text, o)
	}
	if err != nil {
		return nil, failureStatus(http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, err.Error())
	}
	answer := o.DeepCopyObject().(Object)
	s.record(r, watch.Modified, o)
	answer.SetResourceVersion(o.GetResourceVersion())
	return answer, nil
}

// copy returns a copy of the object. The object itself must not be changed, because several
// versions may share it.
func (s *stored) copy() Object { return s.object.DeepCopyObject().(Object) }
