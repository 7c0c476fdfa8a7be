package manifests

import (
	"encoding/json"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Lines finds the lines of objects and fields in the files that have been read. It parses a file
// again on the first question about it: reading does not record positions, because few files have
// findings.
type Lines struct {
	sources   map[string][]byte // by file
	documents map[string][]placed
}

// placed is a document with the positions of its fields.
type placed struct {
	line int // number of lines before the document
	root *yaml.Node
}

// Lines returns the lines of the files from which the objects were read. Objects of a live cluster
// have no lines.
func (o Objects) Lines() *Lines {
	return &Lines{o.sources, make(map[string][]placed)}
}

// Line returns the line number, from 1, of a field of an object in a document of a file. document
// counts from 1, and field has the form of Problem.Field. If the document lacks the field, Line
// returns the line of the innermost part that would contain it. It returns 0 if the file or the
// document is not known.
func (l *Lines) Line(file string, document int, object, field string) int {
	all, known := l.documents[file]
	if !known {
		all = place(l.sources[file])
		l.documents[file] = all
	}
	if document < 1 || document > len(all) {
		return 0
	}
	d := all[document-1]
	if d.root == nil {
		return d.line + 1
	}
	at := d.root
	if !strings.HasPrefix(field, "items[") {
		if o := itemOf(d.root, object, maxLists); o != nil {
			at = o
		}
	}
	return d.line + lineIn(at, field)
}

// place parses the documents of a file, and numbers them as parse does.
func place(data []byte) (all []placed) {
	text, _ := plainText(data) // parse reports a file that is not text; it has no documents
	for _, d := range split(text) {
		if values := jsonValues(d.text); len(values) > 0 {
			for _, v := range values {
				all = append(all, placed{d.line + lineOf(d.text, v.at) - 1, parseNode(v.text)})
			}
			continue
		}
		all = append(all, placed{d.line, parseNode(d.text)})
	}
	return all
}

// jsonValue is one of several JSON values that follow each other.
type jsonValue struct {
	text []byte
	at   int // offset of text in the document
}

// jsonValues returns the JSON values of a document; nil if it is not JSON.
func jsonValues(data []byte) (all []jsonValue) {
	if !strings.HasPrefix(strings.TrimLeft(string(data), " \t\n"), "{") {
		return nil
	}
	for d := json.NewDecoder(strings.NewReader(string(data))); d.More(); {
		var raw json.RawMessage
		if d.Decode(&raw) != nil {
			return nil
		}
		all = append(all, jsonValue{raw, int(d.InputOffset()) - len(raw)})
	}
	return all
}

// parseNode parses a document with its positions. It returns nil if the document cannot be parsed,
// which parse reports.
func parseNode(text []byte) (root *yaml.Node) {
	defer func() {
		if recover() != nil { // the parser panics for some input
			root = nil
		}
	}()
	var n yaml.Node
	if yaml.Unmarshal(text, &n) != nil || len(n.Content) == 0 {
		return nil
	}
	return n.Content[0]
}

// itemOf finds an object, named as in "NetworkPolicy default/x", in a list or in lists inside of it.
// It returns nil if there is none.
func itemOf(n *yaml.Node, object string, depth int) *yaml.Node {
	items := child(n, "items")
	if items == nil || depth == 0 {
		return nil
	}
	kind, name, _ := strings.Cut(object, " ")
	namespace, bare, has := strings.Cut(name, "/")
	if !has {
		namespace, bare = "", name
	}
	for _, i := range items.Content {
		meta := child(i, "metadata")
		ns := scalar(child(meta, "namespace"))
		sameKind := scalar(child(i, "kind")) == kind || child(i, "kind") == nil
		if sameKind && scalar(child(meta, "name")) == bare && (ns == "" || ns == namespace) {
			return i
		}
		if found := itemOf(i, object, depth-1); found != nil {
			return found
		}
	}
	return nil
}

func scalar(n *yaml.Node) string {
	if n == nil {
		return ""
	}
	return n.Value
}

// pathStep is one step of a field's path: a name, an index, or a key in quotes.
var pathStep = regexp.MustCompile(`^\.?(?:([^.\[\]]+)|\[(\d+)\]|\[("(?:[^"\\]|\\.)*")\])`)

// lineIn returns the line of the field at path in a node. If the node lacks the field, it returns the
// line of the innermost part of path that exists.
func lineIn(n *yaml.Node, path string) int {
	line := n.Line
	for path != "" {
		m := pathStep.FindStringSubmatch(path)
		if m == nil {
			break
		}
		path = path[len(m[0]):]
		var at int
		switch {
		case m[2] != "":
			n, at = itemAt(n, m[2])
		default:
			key := m[1]
			if quoted, err := strconv.Unquote(m[3]); err == nil {
				key = quoted
			}
			n, at = fieldAt(n, key)
		}
		if n == nil {
			break
		}
		line = at
	}
	return line
}

// itemAt returns an item of a list, and its line.
func itemAt(n *yaml.Node, index string) (*yaml.Node, int) {
	i, err := strconv.Atoi(index)
	if n = target(n); err != nil || n.Kind != yaml.SequenceNode || i >= len(n.Content) {
		return nil, 0
	}
	return n.Content[i], n.Content[i].Line
}

// fieldAt returns a field's value, and the line of its name.
func fieldAt(n *yaml.Node, name string) (*yaml.Node, int) {
	if n = target(n); n == nil || n.Kind != yaml.MappingNode {
		return nil, 0
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			return n.Content[i+1], n.Content[i].Line
		}
	}
	return nil, 0
}

func child(n *yaml.Node, name string) *yaml.Node {
	found, _ := fieldAt(n, name)
	return target(found)
}

// target follows an alias to its anchor.
func target(n *yaml.Node) *yaml.Node {
	if n != nil && n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}
