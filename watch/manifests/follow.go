package manifests

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	corev1 "k8s.io/api/core/v1"

	"sluice/filter/event"
	"sluice/filter/policy"
)

// Saving a file, or updating a mounted ConfigMap, causes several events in a row. Follow
// reads the files once for each such series of events.
const (
	// debounceQuiet is the pause without events that ends a series.
	debounceQuiet = 10 * time.Millisecond
	// debounceMax bounds the duration of a series.
	debounceMax = 50 * time.Millisecond
	// resyncInterval bounds the time until Follow detects a change that causes no event. Such
	// changes happen behind a link that leads out of the directory, on a file system without
	// notification, or in a directory that was missing. A resync costs one stat for each file.
	resyncInterval = 5 * time.Second
)

// Delta is the difference between two successive states of the objects in a directory. Apply
// it to a policy store that has the earlier state, to get the later one.
type Delta struct {
	Set     Objects // new and changed objects
	Deleted []Ref
}

// Ref names a deleted object. Namespace is empty for objects that are in no namespace.
type Ref struct{ Kind, Namespace, Name string }

// Apply applies the change to the policy store.
func (d Delta) Apply(w *policy.Store) {
	for _, r := range d.Deleted {
		switch r.Kind {
		case "Namespace":
			w.DeleteNamespace(r.Name)
		case "Pod":
			w.DeletePod(r.Namespace, r.Name)
		case "Node":
			w.DeleteNodeObject(r.Name)
		default:
			w.DeletePolicy(policy.Ref(r))
		}
	}
	d.Set.Apply(w)
}

// Apply adds the objects to the policy store, and replaces older versions of them there.
func (o Objects) Apply(w *policy.Store) {
	for _, ns := range o.Namespaces {
		w.SetNamespace(ns.Name, ns.Labels)
		denial, wrong := policy.NamespaceDenial(ns.Name, ns.Annotations)
		w.SetNamespaceDenial(ns.Name, denial, wrong)
		w.SetNamespaceLog(ns.Name, policy.ReadNamespaceLog(ns.Name, ns.Annotations))
	}
	for _, pod := range o.Pods {
		w.SetPod(pod)
	}
	for _, n := range o.Nodes {
		w.SetNodeObject(n)
	}
	for _, p := range o.Policies {
		w.SetPolicy(p)
	}
}

// follower is the state of one Follow. Only one goroutine uses it.
type follower struct {
	roots   []*root
	log     *slog.Logger
	watcher *fsnotify.Watcher
	watched map[string]fs.FileInfo // watched directories by path
	files   map[string]*file
	touched map[string]bool // paths with events since the last scan
	all     bool            // events were lost, so every file must be read
	state   *merged
	logged  map[Problem]bool // problems that logNew has logged: duplicate objects and unreadable subdirectories

	onProblems func([]Problem) // may be nil
	reported   []Problem       // argument of the last call of onProblems

	onNotRead func([]NotRead) // may be nil
	notRead   []NotRead       // argument of the last call of onNotRead
}

// root is a followed directory, or a single followed file.
type root struct {
	dir        string
	paths      []string  // files that the last scan found
	unreadable []string  // subdirectories that cannot be read now; their files keep their state
	problems   []Problem // problems of subdirectories
	away       string    // error of the last attempt to read the root; empty if it succeeded
}

// file is the state of one file.
type file struct {
	info    fs.FileInfo
	content *content  // the content in force: the last without problems; if there is none, the last nonempty one
	good    bool      // the content in force has no problems
	broken  bool      // the content that was read last has problems
	wrong   []Problem // problems of the content that was read last
}

// Follow reads the directory, or the single file, and calls apply() with all objects, even if
// there are none. Then it calls apply() with each change until ctx ends, and returns nil. Calls
// of apply() do not overlap. Follow returns an error if it cannot read dir at first.
//
// Follow logs broken files to logger. The last good state of a broken file stays in force
// until the file is corrected or deleted. If a file has never been good, its readable part
// is in force. If the directory becomes unreadable, its objects stay in force.
func Follow(ctx context.Context, dir string, logger *slog.Logger, apply func(Delta)) error {
	return Source{Dirs: []string{dir}, Logger: logger}.follow(ctx, apply)
}

func (s Source) follow(ctx context.Context, apply func(Delta)) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("follow manifests: %w", err)
	}
	defer watcher.Close()
	logger := s.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	f := &follower{
		log: logger, watcher: watcher,
		watched: make(map[string]fs.FileInfo), files: make(map[string]*file),
		touched: make(map[string]bool), state: merge(nil), logged: make(map[Problem]bool),
		onProblems: s.OnProblems, onNotRead: s.OnNotRead,
	}
	for _, dir := range s.Dirs {
		f.roots = append(f.roots, &root{dir: filepath.Clean(dir)})
		if _, err := os.Stat(dir); err != nil {
			return fmt.Errorf("follow manifests: %w", err)
		}
	}
	first, _ := f.scan()
	for _, r := range f.roots {
		if r.away != "" {
			return fmt.Errorf("follow manifests: %s", r.away)
		}
	}
	f.reportProblems()
	apply(first)
	return f.loop(ctx, apply)
}

func (f *follower) loop(ctx context.Context, apply func(Delta)) error {
	due := time.NewTimer(resyncInterval)
	defer due.Stop()
	var began time.Time // start of the current series of events; zero if there is none
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-f.watcher.Events:
			if !ok {
				return fmt.Errorf("follow manifests: the watch of %s has ended", f.dirs())
			}
			f.event(e)
		case err, ok := <-f.watcher.Errors:
			if !ok {
				return fmt.Errorf("follow manifests: the watch of %s has ended", f.dirs())
			}
			f.log.Warn("file events lost; reading all manifests", "err", err)
			f.all = true
		case <-due.C:
			began = time.Time{}
			delta, again := f.scan()
			f.reportProblems()
			if !delta.empty() {
				apply(delta)
			}
			due.Reset(again)
			continue
		}
		if began.IsZero() {
			began = time.Now()
		}
		due.Reset(min(debounceQuiet, time.Until(began.Add(debounceMax))))
	}
}

func (f *follower) event(e fsnotify.Event) {
	f.touched[e.Name] = true
	if e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename) {
		delete(f.watched, e.Name) // another directory may get the name
	}
}

func (d Delta) empty() bool { return len(d.Set.Origins) == 0 && len(d.Deleted) == 0 }

func (f *follower) dirs() string {
	var dirs []string
	for _, r := range f.roots {
		dirs = append(dirs, r.dir)
	}
	return strings.Join(dirs, ", ")
}

// scan checks every file and reads those that have changed. It returns the resulting
// change, and the time until the next scan.
func (f *follower) scan() (Delta, time.Duration) {
	seen := make(map[string]bool)
	again := resyncInterval
	var contents []*content
	found := make(map[string]bool) // paths of the files that were found
	for _, r := range f.roots {
		f.find(r, seen)
		for _, path := range r.paths {
			if found[path] {
				continue // already found through another root
			}
			found[path] = true
			if !r.unreachable(path) {
				again = min(again, f.check(path))
			}
			contents = append(contents, f.files[path].content)
		}
	}
	for dir := range f.watched {
		if !seen[dir] {
			_ = f.watcher.Remove(dir) // it may have been removed already
			delete(f.watched, dir)
		}
	}
	maps.DeleteFunc(f.files, func(path string, _ *file) bool { return !found[path] })
	clear(f.touched)
	f.all = false
	now := merge(contents)
	f.logNew(now.problems)
	f.reportNotRead(sumNotRead(contents))
	delta := difference(f.state, now)
	f.state = now
	return delta, again
}

// find lists the files of a root. Files that cannot be reached at the moment stay in the
// list.
func (f *follower) find(r *root, seen map[string]bool) {
	l, err := list(r.dir, func(dir string) { f.watch(dir); seen[dir] = true })
	if err != nil {
		if r.away != err.Error() {
			r.away = err.Error()
			f.log.Error("manifests unreadable; their objects stay in force", event.ManifestsUnreadable.Attr(), "err", err)
		}
		return
	}
	if r.away != "" {
		r.away = ""
		f.log.Info("manifests readable again", event.ManifestsReadable.Attr(), "dir", r.dir)
	}
	r.unreadable, r.problems = l.unreadable, l.problems
	for _, path := range r.paths {
		if r.unreachable(path) && f.files[path] != nil && !slices.Contains(l.paths, path) {
			l.paths = append(l.paths, path)
		}
	}
	slices.Sort(l.paths)
	r.paths = l.paths
}

// unreachable reports whether the file is in a directory that cannot be read now.
func (r *root) unreachable(path string) bool {
	return r.away != "" || slices.ContainsFunc(r.unreadable, func(dir string) bool {
		return strings.HasPrefix(path, dir+string(filepath.Separator))
	})
}

// watch subscribes to the events of a directory. It subscribes again if another directory has
// taken the path.
func (f *follower) watch(dir string) {
	info, err := os.Stat(dir)
	if err != nil {
		return // it has just been deleted
	}
	if old := f.watched[dir]; old != nil {
		if os.SameFile(old, info) {
			return
		}
		_ = f.watcher.Remove(dir) // it may have been removed already
	}
	if err := f.watcher.Add(dir); err != nil {
		f.log.Warn("cannot watch a directory of manifests; changes are seen late", "dir", dir, "interval_ms", resyncInterval.Milliseconds(), "err", err)
		return
	}
	f.watched[dir] = info
}

// check reads a file if it may have changed. It returns the time until the next check.
func (f *follower) check(path string) time.Duration {
	info, err := os.Stat(path)
	known := f.files[path]
	switch {
	case known == nil:
		known = &file{content: &content{}}
		f.files[path] = known
	case f.all || f.touched[path] || err != nil:
	case known.info != nil && os.SameFile(known.info, info) && known.info.Size() == info.Size() && known.info.ModTime().Equal(info.ModTime()):
		return resyncInterval
	}
	if err != nil {
		if _, err := os.Lstat(path); err != nil {
			return debounceQuiet // it has just been deleted
		}
		if known.broken && known.info == nil {
			return resyncInterval // the path is a dangling symlink, which has been logged
		}
		info = nil
	}
	known.info = info
	f.apply(path, known, opener{limit: maxFollowed}.readFile(path, f.log))
	return resyncInterval
}

// apply puts the current content of a file in force. If that content has problems, the last
// good state of the file stays in force, if it has one. A file that has become empty counts
// as broken: editors and shells truncate a file before they write it, and its policies must
// not vanish in between.
func (f *follower) apply(path string, known *file, now *content) {
	now.items = slices.DeleteFunc(now.items, func(it *item) bool { return !it.decides() })
	problems := append(slices.Clone(now.problems), now.inPolicies()...)
	emptied := now.blank && len(known.content.items) > 0
	if emptied {
		problems = append(problems, Problem{
			File: path, Detail: "it is empty", Effect: "its former objects stay in force",
			Hint: "to remove its objects, delete the file or write a comment into it",
		})
	}
	known.wrong = problems
	for i := range problems {
		p := &problems[i]
		p.InForce = known.inForce(now, emptied)
		if known.good && !emptied {
			p.Effect = "" // it is not in force
		}
		f.log.Error("broken manifest", event.ManifestBroken.Attr(), "problem", *p, "in_force", p.InForce)
	}
	for _, text := range Condense(slices.Concat(now.notes, now.outdated)) {
		f.log.Info("part of a manifest has no effect", "note", text)
	}
	switch {
	case len(problems) == 0:
		if known.broken {
			f.log.Info("manifest corrected", event.ManifestRepaired.Attr(), "objects", len(now.items))
		}
		known.content, known.good, known.broken = now, true, false
	case known.good || emptied:
		known.broken = true
	default:
		known.content, known.broken = now, true
	}
}

// inForce names what stays or comes in force if the content that was read last, now, has
// problems. emptied reports that the file has become empty.
func (f *file) inForce(now *content, emptied bool) string {
	switch {
	case f.good:
		return "the last good state of the file"
	case emptied:
		return "the former objects of the file"
	case len(now.items) == 0:
		return "nothing of the file"
	}
	return "the readable part of the file"
}

// inPolicies returns the problems that the readers of policies find, except those that
// c.problems cause. A rule with a problem allows nothing, which is safe, but may deny what the
// author wanted to allow. So the returned problems make the file count as broken, and its last
// good state stays in force.
//
// A problem does not hold the file back if it changes no decision, or if the policy is correct
// and Sluice does not support a part of it. The policy store reports these problems.
func (c *content) inPolicies() []Problem {
	var found []Problem
	for _, it := range c.items {
		if it.policies == nil {
			continue
		}
		for _, p := range it.policies.read(it.object).Problems {
			if p.Minor || p.Unsupported || CausedBy(p, c.problems) {
				continue
			}
			found = append(found, Problem{
				File: it.origin.File, Document: it.origin.Document, Object: it.name,
				Field: p.Field, Detail: p.Detail, Effect: p.Effect, Hint: p.Hint,
			})
		}
	}
	return found
}

// reportProblems passes all problems to onProblems if they have changed.
func (f *follower) reportProblems() {
	if f.onProblems == nil {
		return
	}
	var all []Problem
	for _, r := range f.roots {
		if r.away != "" {
			all = append(all, Problem{File: r.dir, Detail: r.away, Hint: "restore it; its objects stay in force until then", InForce: "the objects that were read before"})
		}
		all = append(all, r.problems...)
	}
	for _, path := range slices.Sorted(maps.Keys(f.files)) {
		all = append(all, f.files[path].wrong...)
	}
	all = append(all, f.state.problems...)
	if !slices.Equal(all, f.reported) {
		f.reported = all
		f.onProblems(all)
	}
}

// logNew logs duplicate objects and unreadable directories, each once while the problem
// lasts.
func (f *follower) logNew(duplicates []Problem) {
	logged := make(map[Problem]bool)
	report := func(p Problem, text string) {
		if !f.logged[p] {
			f.log.Error(text, "problem", p)
		}
		logged[p] = true
	}
	for _, p := range duplicates {
		report(p, "duplicate object skipped")
	}
	for _, r := range f.roots {
		for _, p := range r.problems {
			report(p, "manifests unreadable; their objects stay in force")
		}
	}
	f.logged = logged
}

// reportNotRead is called with the skipped objects that may change what is allowed. If they differ
// from those of the previous call, it logs them and passes them to onNotRead.
func (f *follower) reportNotRead(now []NotRead) {
	if slices.EqualFunc(now, f.notRead, func(a, b NotRead) bool { return a.String() == b.String() }) {
		return
	}
	f.notRead = now
	if len(now) > 0 {
		f.log.Warn("skipped objects that may change what is allowed", "not_read", TextOf(now))
	}
	if f.onNotRead != nil {
		f.onNotRead(now)
	}
}

// difference returns the change between two states, "before" and "after". An item counts as
// changed if its pointer differs: the items of a file keep their pointers until the file is
// read again.
func difference(before, after *merged) Delta {
	d := Delta{Set: Objects{Origins: make(map[string]Origin)}}
	for _, it := range before.items {
		if after.byName[it.name] == nil {
			d.Deleted = append(d.Deleted, refTo(it))
		}
	}
	for _, it := range after.items {
		if before.byName[it.name] != it {
			d.Set.add(it)
		}
	}
	return d
}

func refTo(it *item) Ref {
	r := Ref{Namespace: it.object.GetNamespace(), Name: it.object.GetName()}
	switch it.object.(type) {
	case *corev1.Namespace:
		r.Kind = "Namespace"
	case *corev1.Pod:
		r.Kind = "Pod"
	case *corev1.Node:
		r.Kind = "Node"
	default:
		if it.policies != nil {
			r.Kind = it.policies.name
		}
	}
	return r
}
