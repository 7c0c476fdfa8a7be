package kube

import (
	"fmt"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"sluice/filter/policy"
)

// change is a new, changed or deleted object.
type change struct {
	kind   *kind
	name   types.NamespacedName
	object object // nil if the object was deleted
}

func (c change) apply(w *policy.Store) {
	if c.object != nil {
		c.object.put(w)
		return
	}
	c.kind.remove(w, c.name.Namespace, c.name.Name)
}

// table is the reflector's store for one kind of objects. It passes the objects to the
// queue and keeps only their names. The reflector's calls do not overlap.
type table struct {
	kind   *kind
	queue  *queue
	health *health
	nodes  *nodes        // reads Nodes; nil for other kinds
	taint  *startupTaint // removes the startup taint of this node's Node; nil for other kinds, and without a taint
	// known has the name of each object that the API server has. For a pod, the value is its
	// label set; for other kinds, nil. The map keeps each label set alive, so that new pods with
	// equal labels share it. The policy store refers only to the labels in the set, and so does
	// not keep the set alive.
	known  map[types.NamespacedName]*labelSet
	listed bool // the first list has arrived
}

var _ cache.ReflectorStore = (*table)(nil)

func newTable(k *kind, q *queue, h *health) *table {
	return &table{kind: k, queue: q, health: h, known: make(map[types.NamespacedName]*labelSet)}
}

// Add queues a new object.
func (t *table) Add(o any) error { return t.Update(o) }

// Update queues a changed object.
func (t *table) Update(o any) error {
	c, matters, err := t.set(o)
	if err != nil {
		return err
	}
	t.health.events(t.kind, 1)
	if matters {
		t.queue.add(c)
		t.checkNode()
	}
	return nil
}

// Delete queues the deletion of an object. After a gap in the watch, o contains the last known
// state of the object.
func (t *table) Delete(o any) error {
	if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = gone.Obj
	}
	obj, ok := o.(object)
	if !ok {
		return fmt.Errorf("delete a %s: unexpected type %T", t.kind.name, o)
	}
	t.health.events(t.kind, 1)
	t.queue.add(t.delete(obj.id()))
	t.checkNode()
	return nil
}

// Replace queues all objects of a full list. It also queues the deletion of known objects that
// the list does not contain: they were deleted while no watch was open.
func (t *table) Replace(list []any, _ string) error {
	gone := t.known
	t.known = make(map[types.NamespacedName]*labelSet, len(list))
	changes := make([]change, 0, len(list))
	for i, o := range list {
		c, matters, err := t.set(o)
		if err != nil {
			return err
		}
		if matters {
			changes = append(changes, c)
		}
		delete(gone, c.name)
		list[i] = nil // let the object be freed as soon as the queue is done with it
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
	t.queue.addFirst(t.kind, changes)
	return nil
}

// empty removes all objects of the kind. It is called if the kind is not served.
func (t *table) empty() { _ = t.Replace(nil, "") } // Replace fails only for unexpected objects

// Resync does nothing, because the policy store keeps all objects.
func (t *table) Resync() error { return nil }

// set records an object. It returns false for a version of a Node that does not differ from
// the previous one in anything that matters.
func (t *table) set(o any) (c change, matters bool, err error) {
	obj, ok := o.(object)
	if !ok {
		return change{}, false, fmt.Errorf("take a %s: unexpected type %T", t.kind.name, o)
	}
	matters = true
	c = change{kind: t.kind, name: obj.id(), object: obj}
	switch obj := obj.(type) {
	case *pod:
		t.known[c.name] = obj.labels
	case *node:
		t.known[c.name] = nil
		matters = t.nodes.read(obj)
		if t.taint != nil {
			t.taint.observe(obj)
		}
	default:
		t.known[c.name] = nil
	}
	return c, matters, nil
}

func (t *table) delete(name types.NamespacedName) change {
	delete(t.known, name)
	if t.nodes != nil {
		t.nodes.forget(name.Name)
	}
	return change{kind: t.kind, name: name}
}

// checkNode reports to nodes and taint whether this node's Node exists.
func (t *table) checkNode() {
	if t.nodes != nil {
		_, exists := t.known[types.NamespacedName{Name: t.nodes.self}]
		t.nodes.check(exists)
	}
	if t.taint != nil {
		_, exists := t.known[types.NamespacedName{Name: t.taint.node}]
		t.taint.missing.Store(!exists)
	}
}
