package kube

import (
	"fmt"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"sluice/filter/policy"
)

// change is one step of the store: an object that is new or another, or one that
// is gone.
type change struct {
	kind   *kind
	name   types.NamespacedName
	object object // nil if it is gone
}

func (c change) apply(w *policy.Store) {
	if c.object != nil {
		c.object.put(w)
		return
	}
	c.kind.remove(w, c.name.Namespace, c.name.Name)
}

// table is where a reflector puts the objects of one kind: it passes them on, and
// keeps their names. A reflector's calls come one after the other.
type table struct {
	kind   *kind
	queue  *queue
	health *health
	nodes  *nodes        // of Nodes; nil if their pod ranges are not needed
	taint  *startupTaint // of this node's Node; nil if there is none
	// known is what the API server has. With a pod's name goes its set of labels,
	// so that the set stays known as long as the store has a pod with it.
	known  map[types.NamespacedName]*labelSet
	listed bool // a list has come
}

var _ cache.ReflectorStore = (*table)(nil)

func newTable(k *kind, q *queue, h *health) *table {
	return &table{kind: k, queue: q, health: h, known: make(map[types.NamespacedName]*labelSet)}
}

// Add takes an object that has come.
func (t *table) Add(o any) error { return t.Update(o) }

// Update takes an object that has changed.
func (t *table) Update(o any) error {
	c, err := t.set(o)
	if err != nil {
		return err
	}
	t.health.events(t.kind, 1)
	t.queue.add(c)
	t.checkNode()
	return nil
}

// Delete takes an object that is gone, or what was last known of it.
func (t *table) Delete(o any) error {
	if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = gone.Obj
	}
	obj, ok := o.(object)
	if !ok {
		return fmt.Errorf("delete a %s: %T is none", t.kind.name, o)
	}
	t.health.events(t.kind, 1)
	t.queue.add(t.delete(obj.id()))
	t.checkNode()
	return nil
}

// Replace takes all objects that there are. Those that were known and are not
// among them have gone while nobody heard.
func (t *table) Replace(list []any, _ string) error {
	gone := t.known
	t.known = make(map[types.NamespacedName]*labelSet, len(list))
	changes := make([]change, 0, len(list))
	for i, o := range list {
		c, err := t.set(o)
		if err != nil {
			return err
		}
		changes = append(changes, c)
		delete(gone, c.name)
		list[i] = nil // the queue holds it now, and lets go of it sooner
	}
	for name := range gone {
		changes = append(changes, t.delete(name))
	}
	t.checkNode()
	t.health.synced(t.kind, len(list))
	if t.listed {
		t.queue.add(changes...)
		return nil
	}
	t.listed = true
	t.queue.addFirst(changes)
	return nil
}

// Resync is never asked for: the store forgets nothing.
func (t *table) Resync() error { return nil }

func (t *table) set(o any) (change, error) {
	obj, ok := o.(object)
	if !ok {
		return change{}, fmt.Errorf("take a %s: %T is none", t.kind.name, o)
	}
	c := change{kind: t.kind, name: obj.id(), object: obj}
	switch obj := obj.(type) {
	case *pod:
		t.known[c.name] = obj.labels
	case *node:
		t.known[c.name] = nil
		if t.nodes != nil {
			t.nodes.read(obj)
		}
		if t.taint != nil {
			t.taint.observe(obj)
		}
	default:
		t.known[c.name] = nil
	}
	return c, nil
}

func (t *table) delete(name types.NamespacedName) change {
	delete(t.known, name)
	return change{kind: t.kind, name: name}
}

// checkNode reports whether there is a Node of this node's name to all who need it.
func (t *table) checkNode() {
	if t.nodes != nil {
		_, there := t.known[types.NamespacedName{Name: t.nodes.self}]
		t.nodes.check(there)
	}
	if t.taint != nil {
		_, there := t.known[types.NamespacedName{Name: t.taint.node}]
		t.taint.missing.Store(!there)
	}
}
