package manifests

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	yamlv2 "go.yaml.in/yaml/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"sluice/filter/policy/near"
)

// maxLists bounds the nesting of lists, because each level is decoded again.
const maxLists = 8

// item is one object of a file.
type item struct {
	name     string // "NetworkPolicy default/x"
	object   metav1.Object
	policies *policyKind // nil if the object is not a policy
	outside  bool        // the object leads from outside the cluster to Services
	origin   Origin
}

// parser reads the documents of one file.
type parser struct {
	content
	path     string
	document int
	template bool // a problem reports that the file has a template
	logger   *slog.Logger
	reading
}

// reading states how to read files.
type reading struct {
	// templates reports that workloads and routes are read, which help to answer questions. An agent
	// that follows manifests skips them: it decides by running pods, and a mistake in a workload
	// must not hold up the policies of the same file.
	templates bool
	namespace string // namespace of objects that state none; empty means default
	command   string // for hints: a command that can read the standard input, as in "sluice lint"; empty if there is none
}

// parse parses the content of a file. It parses each document separately, so that a broken
// document does not hide the others. Everything in data becomes an object, a problem or a
// note, no matter how the documents are separated.
func parse(path string, data []byte, how reading, logger *slog.Logger) *content {
	p := &parser{path: path, logger: logger, reading: how}
	if how.templates {
		p.file, p.source = path, data
	}
	data, flaw := plainText(data)
	if flaw != "" {
		p.problem("", flaw, "save it as text, in UTF-8")
		return &p.content
	}
	p.blank = len(bytes.TrimSpace(data)) == 0
	for _, d := range split(data) {
		if trimmed := bytes.TrimLeft(d.text, " \t\n"); bytes.HasPrefix(trimmed, []byte("{")) && p.jsonStream(d.text) {
			continue
		}
		p.document++
		text, err := toJSON(d.text)
		if err != nil && p.template {
			continue // a problem already states that the whole file must be rendered first
		}
		if err != nil {
			// Parse again with blank lines in front, so that the error contains the line
			// number in the file. Only broken documents pay for this.
			_, err = toJSON(append(bytes.Repeat([]byte("\n"), d.line), d.text...))
			message := strings.TrimPrefix(fmt.Sprint(err), "error converting YAML to JSON: ")
			p.template = d.isTemplate()
			p.problem("", message, p.syntaxHint(d, message))
			continue
		}
		p.object(text, "", metav1.TypeMeta{}, 0)
		if where, more := behind(d); more {
			p.problem("", where+"the text after the end of the document is not read",
				"write --- (three dashes on a line of their own) between two objects")
		}
	}
	return &p.content
}

// toJSON converts a YAML document to JSON. It recovers from panics in the YAML parser,
// which some input causes.
func toJSON(text []byte) (_ []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the YAML cannot be parsed: %v", r)
		}
	}()
	return yaml.YAMLToJSONStrict(text)
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): `)

// behind reports whether d has more text after its first YAML document. toJSON ignores such
// text. The first result is "line N: ", the beginning of a message, or "" if the line is not
// known.
func behind(d document) (where string, more bool) {
	defer func() {
		if recover() != nil {
			more = true
		}
	}()
	in := yamlv2.NewDecoder(bytes.NewReader(d.text))
	var skipped struct{}
	_ = in.Decode(&skipped) // toJSON has reported the error
	err := in.Decode(&skipped)
	if errors.Is(err, io.EOF) {
		return "", false
	}
	if err != nil {
		line := 1
		if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
			line, _ = strconv.Atoi(m[1]) // the match has only digits
			line++                       // in this error, the parser counts lines from 0
		}
		where = fmt.Sprintf("line %d: ", d.line+line)
	}
	return where, true
}

// jsonStream parses data as a sequence of JSON values. If data is not such a sequence, it
// returns false and changes nothing: YAML may begin with a brace too.
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
		// Duplicate keys are refused, as in YAML.
		var whole any
		if twice, err := kjson.UnmarshalStrict(raw, &whole); err != nil || len(twice) > 0 {
			p.problem("", fmt.Sprint(errors.Join(append(twice, err)...)), "keep one of the two")
			continue
		}
		p.object(raw, "", metav1.TypeMeta{}, 0)
	}
	return true
}

// problem adds a problem of the current document whose object is not known.
func (p *parser) problem(field, detail, hint string) {
	p.report(Problem{Field: field, Detail: detail, Hint: hint})
}

// report adds a problem of the current document.
func (p *parser) report(wrong Problem) {
	wrong.File, wrong.Document = p.path, p.document
	p.problems = append(p.problems, wrong)
}

// note records a mistake that does not change what policies allow.
func (p *parser) note(object, field, detail, hint string) {
	p.notes = append(p.notes, Problem{
		File: p.path, Document: p.document, Object: object, Field: field, Detail: detail, Hint: hint,
	})
}

// head contains the fields that every object has. They are of type any, so that the kind
// can be read even if another field has the wrong type.
type head struct {
	APIVersion any `json:"apiVersion"`
	Kind       any `json:"kind"`
	Metadata   any `json:"metadata"`
	Spec       any `json:"spec"`
	Items      any `json:"items"`
}

// object parses one object, or the items of a list. The parameter "at" is the path of the
// object in a list, as a prefix of its field names; "listed" is the type that the list implies
// for its items, if any; "depth" is the number of lists around the object.
func (p *parser) object(text []byte, at string, listed metav1.TypeMeta, depth int) {
	var h head
	if err := kjson.UnmarshalCaseSensitivePreserveInts(text, &h); err != nil {
		if !bytes.Equal(bytes.TrimSpace(text), []byte("null")) {
			p.problem(strings.TrimSuffix(at, "."), "it is not an object", "write apiVersion, kind, metadata and spec")
		}
		return
	}
	apiVersion, _ := h.APIVersion.(string)
	kind, _ := h.Kind.(string)
	if kind == "" && apiVersion == "" {
		apiVersion, kind = listed.APIVersion, listed.Kind
	}
	if kind == "" {
		p.kindless(h, text, at)
		return
	}
	if isList(kind, h.Items) {
		p.listed = true
		p.list(text, at, apiVersion, kind, depth+1)
		return
	}
	p.objects++
	group, _, _ := strings.Cut(apiVersion, "/")
	if k := routeKindOf(group, kind); k != nil && p.templates {
		p.route(k, apiVersion, text, at)
		return
	}
	kind, understood := p.known(apiVersion, kind, at, text)
	switch kind {
	case "Namespace":
		add(p, text, at, kind, &corev1.Namespace{}, checkNamespace)
	case "Pod":
		add(p, text, at, kind, &corev1.Pod{}, checkPod)
	case "Node":
		add(p, text, at, kind, &corev1.Node{}, checkNode)
	case "Service":
		extra(p, text, kind, &corev1.Service{})
	case "EndpointSlice":
		if now := discoveryv1.SchemeGroupVersion.String(); apiVersion == "discovery.k8s.io/v1beta1" {
			p.outdate(kind+" "+p.nameIn(text, kind), at, apiVersion, "1.25", now, "write "+now)
		}
		extra(p, text, kind, &discoveryv1.EndpointSlice{})
	default:
		if k := policyKindOf(kind); k != nil {
			p.policy(k, text, at, understood)
		} else if w := workloadKindOf(kind); w != nil {
			w.add(p, text, at)
		}
	}
}

// kindless reports a document without a kind: an incomplete object, or other YAML such as
// the values of a chart.
func (p *parser) kindless(h head, text []byte, at string) {
	if h.APIVersion != nil || h.Kind != nil || h.Metadata != nil || h.Spec != nil {
		hint := "write the kind of the object, such as NetworkPolicy"
		if filepath.Base(p.path) == chartFile {
			hint = p.renderHint("helm template CHART")
		}
		p.problem(at+"kind", "it is missing", hint)
		return
	}
	var fields map[string]any
	if err := json.Unmarshal(text, &fields); err != nil || len(fields) == 0 {
		return // the document is empty
	}
	for name := range fields {
		for _, right := range []string{"kind", "apiVersion", "metadata", "spec"} {
			if strings.EqualFold(name, right) {
				p.problem(at+name, "there is no such field", "write "+right)
				return
			}
		}
	}
	if _, tests := fields["tests"].([]any); tests && onlyTests(fields) {
		p.logger.Debug("file of tests skipped", "file", p.path, "document", p.document)
		return
	}
	p.note("", strings.TrimSuffix(at, "."), "it has no kind and is skipped", "if it is meant to be an object, write apiVersion and kind")
}

// onlyTests reports whether a document without a kind has only fields of a file for "sluice test": such
// files are often beside the manifests.
func onlyTests(fields map[string]any) bool {
	for name := range fields {
		if !slices.Contains([]string{"manifests", "nodeIPs", "podCIDRs", "tests"}, name) {
			return false
		}
	}
	return true
}

// wanted returns the name and the API version of a supported kind that affects decisions.
// It ignores the case of kind. For any other kind, it returns "".
func (p *parser) wanted(kind string) (name, version string) {
	switch strings.ToLower(kind) {
	case "namespace":
		return "Namespace", "v1"
	case "pod":
		return "Pod", "v1"
	case "node":
		return "Node", "v1"
	}
	if k := policyKindOf(kind); k != nil {
		return k.name, k.version.String()
	}
	if w := workloadKindOf(kind); w != nil && p.templates {
		return w.name, w.version
	}
	return "", ""
}

// known returns the name of the kind if the kind is supported, and "" otherwise. It accepts
// a kind or an API version that is almost right, because a policy that is skipped would
// isolate nothing. It reports such a mistake as a problem and returns false as the second
// result, so that the rules of the policy allow nothing.
func (p *parser) known(apiVersion, kind, at string, text []byte) (name string, understood bool) {
	name, version := p.wanted(kind)
	policies := policyKindOf(name)
	group, _, hasGroup := strings.Cut(apiVersion, "/")
	home := policyKindIn(group)
	if !hasGroup && home == nil {
		group = ""
	}
	foreign := strings.Contains(group, ".") && home == nil
	if policies != nil {
		if _, like := near.Name(group, []string{policies.version.Group}); like {
			foreign = false // the group is only misspelled
		}
	}
	switch {
	case foreign && group == discoveryv1.GroupName && kind == "EndpointSlice", apiVersion == "v1" && kind == "Service":
		return kind, true
	case foreign, name == "" && home == nil:
		p.pass(Kind{group, kind}, apiVersion, at)
		return "", true
	case name == "" && home.retired[kind] != "":
		p.pass(Kind{group, kind}, apiVersion, at)
		p.note(kind+" "+p.nameIn(text, home.name), at+"kind", "this kind is not read: "+home.name+" has replaced it", home.retired[kind])
		return "", true
	case name == "":
		if !slices.Contains(home.siblings, kind) {
			p.problem(at+"kind", fmt.Sprintf("%q is not a kind of %s", kind, apiVersion), "if it is meant to be a policy, write "+home.name)
		}
		return "", true
	}
	object := name + " " + p.nameIn(text, name)
	understood = true
	if kind != name {
		p.report(Problem{Object: object, Field: at + "kind", Detail: fmt.Sprintf("%q is not the name of the kind", kind), Effect: policies.closedEffect(), Hint: "write " + name})
		understood = false
	}
	switch {
	case apiVersion == version, policies != nil && apiVersion != "" && apiVersion == policies.also:
	case removedIn(name, apiVersion) != "":
		p.outdate(object, at, apiVersion, removedIn(name, apiVersion), version, "write "+version)
	default:
		detail := "it is missing"
		if apiVersion != "" {
			detail = fmt.Sprintf("%q is not the version of a %s", apiVersion, name)
		}
		p.report(Problem{Object: object, Field: at + "apiVersion", Detail: detail, Effect: policies.closedEffect(), Hint: "write " + version})
		understood = false
	}
	return name, understood
}

// nameIn returns the name of the object for messages. Parts that cannot be read are
// omitted.
func (p *parser) nameIn(text []byte, kind string) string {
	var o metav1.PartialObjectMetadata
	_ = kjson.UnmarshalCaseSensitivePreserveInts(text, &o) // unreadable parts stay empty: they are reported elsewhere
	if o.Name != "" && o.Namespace == "" {
		o.Namespace = p.namespace
	}
	return nameOf(kind, &o)
}

func nameOf(kind string, o metav1.Object) string {
	if o.GetName() == "" {
		if ns := o.GetNamespace(); ns != "" && !inCluster(kind) {
			return "without a name in namespace " + ns
		}
		return "without a name"
	}
	if inCluster(kind) {
		return o.GetName()
	}
	ns := o.GetNamespace()
	if ns == "" {
		ns = metav1.NamespaceDefault
	}
	return ns + "/" + o.GetName()
}

// add decodes, defaults and checks one object. It keeps the object unless its name or
// namespace cannot be read.
func add[T metav1.Object](p *parser, text []byte, at, kind string, object T, check func(T, *checker)) {
	c := &checker{p: p, at: at, object: kind + " " + p.nameIn(text, kind), text: text}
	c.check(object, kind)
	check(object, c)
	if !c.unidentified {
		p.keep(&item{object: object}, kind)
	}
}

// policy does for a policy what add() does for other objects. If the parameter "understood" is
// false (see parser.known), the policy allows nothing.
func (p *parser) policy(k *policyKind, text []byte, at string, understood bool) {
	object := k.empty()
	c := &checker{p: p, at: at, object: k.name + " " + p.nameIn(text, k.name), text: text, kind: k}
	c.check(object, k.name)
	c.closed = c.closed || !understood
	k.check(object, c)
	if !c.unidentified {
		p.keep(&item{object: object, policies: k}, k.name)
	}
}

// check decodes an object, and checks its metadata.
func (c *checker) check(object metav1.Object, kind string) {
	c.inCluster = inCluster(kind)
	strict, err := kjson.UnmarshalStrict(c.text, object)
	for _, e := range strict {
		c.strict(object, e)
	}
	if err != nil {
		c.decode(object, err)
	}
	switch {
	case !c.inCluster:
		c.p.place(object)
	case object.GetNamespace() != "":
		c.p.note(c.object, c.at+"metadata.namespace", "a "+kind+" is in no namespace; it is ignored", "remove it")
		object.SetNamespace("")
	}
	c.meta(object, kind)
}

// extra decodes an object that does not affect decisions, but shows which Service an
// address belongs to. If the object cannot be decoded, extra records a note and skips the
// object.
func extra[T metav1.Object](p *parser, text []byte, kind string, object T) {
	if err := kjson.UnmarshalCaseSensitivePreserveInts(text, object); err != nil {
		p.note(kind+" "+p.nameIn(text, kind), "", "it cannot be read: "+strings.TrimPrefix(err.Error(), "json: "), "write the object as the API documents it")
		return
	}
	p.place(object)
	if object.GetName() != "" {
		p.keep(&item{object: object}, kind)
	}
}

// place sets the namespace of an object that states none to the one in which kubectl would create it.
func (p *parser) place(o metav1.Object) {
	if o.GetNamespace() != "" {
		return
	}
	p.placed++
	o.SetNamespace(cmp.Or(p.namespace, metav1.NamespaceDefault))
}

func (p *parser) keep(it *item, kind string) {
	it.name, it.origin = kind+" "+nameOf(kind, it.object), Origin{File: p.path, Document: p.document}
	p.items = append(p.items, it)
}
