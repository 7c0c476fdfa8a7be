package folder

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// item is one object of a file.
type item struct {
	name   string // "NetworkPolicy default/x"
	object metav1.Object
	origin Origin
}

// parser reads the documents of one file.
type parser struct {
	content
	path     string
	document int
	logger   *slog.Logger
}

// parse reads the text of a file. Each document is read by itself, so that one
// that is broken does not hide the others.
func parse(path string, data []byte, logger *slog.Logger) *content {
	p := &parser{path: path, logger: logger}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if trimmed := bytes.TrimLeft(data, " \t\r\n"); bytes.HasPrefix(trimmed, []byte("{")) && p.jsonStream(data) {
		return &p.content
	}
	for _, d := range split(data) {
		p.document++
		text, err := yaml.YAMLToJSONStrict(d.text)
		if err != nil {
			// Once more with the lines before it blank: so the parser's line
			// numbers are those of the file. Only broken documents pay for it.
			_, err = yaml.YAMLToJSONStrict(append(bytes.Repeat([]byte("\n"), d.line), d.text...))
			p.problem("", "", strings.TrimPrefix(fmt.Sprint(err), "error converting YAML to JSON: "), "correct the YAML")
			continue
		}
		p.object(text, "", metav1.TypeMeta{})
	}
	return &p.content
}

// jsonStream reads JSON objects one after the other, and says whether that is
// what the data are: YAML may begin with a brace too.
func (p *parser) jsonStream(data []byte) bool {
	var documents []json.RawMessage
	for d := json.NewDecoder(bytes.NewReader(data)); ; {
		var raw json.RawMessage
		err := d.Decode(&raw)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return false
		}
		documents = append(documents, raw)
	}
	for _, raw := range documents {
		p.document++
		p.object(raw, "", metav1.TypeMeta{})
	}
	return true
}

func (p *parser) problem(object, field, detail, mend string) {
	p.problems = append(p.problems, Problem{
		File: p.path, Document: p.document, Object: object, Field: field, Detail: detail, Mend: mend,
	})
}

// head is what every object has. Its fields are any so that a number for a name
// does not keep the kind from being read.
type head struct {
	APIVersion any `json:"apiVersion"`
	Kind       any `json:"kind"`
	Metadata   any `json:"metadata"`
	Spec       any `json:"spec"`
	Items      any `json:"items"`
}

// object reads one object, or the items of a list. at is its place in a list, as
// a prefix of fields; listed is its type if its list implies one.
func (p *parser) object(text []byte, at string, listed metav1.TypeMeta) {
	var h head
	if err := kjson.UnmarshalCaseSensitivePreserveInts(text, &h); err != nil {
		if !bytes.Equal(bytes.TrimSpace(text), []byte("null")) {
			p.problem("", strings.TrimSuffix(at, "."), "it is not an object", "write apiVersion, kind, metadata and spec")
		}
		return
	}
	apiVersion, _ := h.APIVersion.(string)
	kind, _ := h.Kind.(string)
	if kind == "" && apiVersion == "" {
		apiVersion, kind = listed.APIVersion, listed.Kind
	}
	if kind == "" {
		if apiVersion != "" || h.Metadata != nil || h.Spec != nil {
			p.problem("", at+"kind", "it is missing", "write the kind of the object, such as NetworkPolicy")
		}
		return // something else that is YAML: values of a chart, tests of policies
	}
	if strings.HasSuffix(kind, "List") && h.Items != nil {
		p.list(text, at, metav1.TypeMeta{APIVersion: apiVersion, Kind: strings.TrimSuffix(kind, "List")})
		return
	}
	switch kind = p.known(apiVersion, kind, at, text); kind {
	case "Namespace":
		add(p, text, at, kind, &corev1.Namespace{}, checkNamespace)
	case "Pod":
		add(p, text, at, kind, &corev1.Pod{}, checkPod)
	case "NetworkPolicy":
		add(p, text, at, kind, &networkingv1.NetworkPolicy{}, checkPolicy)
	}
}

// list reads the items of a List, PodList and the like.
func (p *parser) list(text []byte, at string, typed metav1.TypeMeta) {
	var l struct {
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(text, &l); err != nil {
		p.problem("", at+"items", "it is not a list of objects", "write each object as an item")
		return
	}
	if typed.Kind == "" {
		typed = metav1.TypeMeta{}
	}
	for i, raw := range l.Items {
		p.object(raw, fmt.Sprintf("%sitems[%d].", at, i), typed)
	}
}

// known returns the kind if it is one that decisions need, and else nothing. A
// near miss is a problem, since a policy that is passed over isolates nothing.
func (p *parser) known(apiVersion, kind, at string, text []byte) string {
	wanted := map[string]string{"namespace": "Namespace", "pod": "Pod", "networkpolicy": "NetworkPolicy"}[strings.ToLower(kind)]
	group, _, hasGroup := strings.Cut(apiVersion, "/")
	if !hasGroup {
		group = ""
	}
	foreign := strings.Contains(group, ".") && group != networkingv1.GroupName
	switch {
	case foreign, wanted == "" && group != networkingv1.GroupName:
		p.logger.Debug("manifest of another kind passed over", "file", p.path, "document", p.document, "apiVersion", apiVersion, "kind", kind)
		return ""
	case wanted == "":
		switch kind {
		case "Ingress", "IngressClass", "IPAddress", "ServiceCIDR":
		default:
			p.problem("", at+"kind", fmt.Sprintf("%q is no kind of %s", kind, apiVersion), "if it is to be a policy, write NetworkPolicy")
		}
		return ""
	}
	version := "v1"
	if wanted == "NetworkPolicy" {
		version = networkingv1.SchemeGroupVersion.String()
	}
	name := wanted + " " + nameIn(text, wanted)
	if kind != wanted {
		p.problem(name, at+"kind", fmt.Sprintf("%q is not the name of the kind", kind), "write "+wanted)
	}
	if apiVersion != version {
		p.problem(name, at+"apiVersion", fmt.Sprintf("%q is not the version of a %s", apiVersion, wanted), "write "+version)
	}
	return wanted
}

// nameIn is the object's name as far as it can be told, for messages.
func nameIn(text []byte, kind string) string {
	var o metav1.PartialObjectMetadata
	_ = json.Unmarshal(text, &o) // what cannot be read stays empty, and is reported elsewhere
	return nameOf(kind, &o)
}

func nameOf(kind string, o metav1.Object) string {
	if kind == "Namespace" {
		return o.GetName()
	}
	ns := o.GetNamespace()
	if ns == "" {
		ns = metav1.NamespaceDefault
	}
	return ns + "/" + o.GetName()
}

// add decodes, defaults and checks one object, and keeps it if anything can be
// made of it.
func add[T metav1.Object](p *parser, text []byte, at, kind string, object T, check func(T, *checker)) {
	c := &checker{p: p, at: at, object: kind + " " + nameIn(text, kind), before: len(p.problems)}
	strict, err := kjson.UnmarshalStrict(text, object)
	for _, e := range strict {
		c.strict(object, e)
	}
	if err != nil {
		c.undecodable(text, object, err)
	}
	if object.GetNamespace() == "" && kind != "Namespace" {
		object.SetNamespace(metav1.NamespaceDefault)
	}
	c.meta(object, kind)
	check(object, c)
	if c.lost {
		return
	}
	p.items = append(p.items, &item{
		name: kind + " " + nameOf(kind, object), object: object,
		origin: Origin{File: p.path, Document: p.document},
	})
}
