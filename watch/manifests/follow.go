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
	networkingv1 "k8s.io/api/networking/v1"

	"sluice/filter/event"
	"sluice/filter/policy"
	"sluice/filter/policy/netpol"
)

// How long Follow waits. Saving a file is a burst of events, and so is the
// update of a mounted ConfigMap; what a burst leaves behind is what counts.
const (
	debounceQuiet = 10 * time.Millisecond // without events ends a burst
	debounceMax   = 50 * time.Millisecond // is the longest that one may go on
	// A look at all files without an event catches what events cannot tell:
	// links that lead out of the folder, file systems without notification, a
	// folder that was away. It costs one stat a file.
	resyncInterval = 5 * time.Second
)

// Delta is what changed in a folder. Applied in order to a World that holds the
// state before, it gives the state after.
type Delta struct {
	Set     Objects // new or changed
	Deleted []Ref
}

// Ref names an object that is gone. Namespace is empty for a Namespace.
type Ref struct{ Kind, Namespace, Name string }

// Apply brings a World up to date.
func (d Delta) Apply(w *policy.World) {
	for _, r := range d.Deleted {
		switch r.Kind {
		case "Namespace":
			w.DeleteNamespace(r.Name)
		case "Pod":
			w.DeletePod(r.Namespace, r.Name)
		case "NetworkPolicy":
			w.DeletePolicy(netpol.Ref(r.Namespace, r.Name))
		}
	}
	d.Set.Apply(w)
}

// Apply adds the objects to a World, or replaces what it knows of them.
func (o Objects) Apply(w *policy.World) {
	for _, ns := range o.Namespaces {
		w.SetNamespace(ns.Name, ns.Labels)
	}
	for _, pod := range o.Pods {
		w.SetPod(pod)
	}
	for _, p := range o.Policies {
		w.SetPolicy(p)
	}
}

// follower is the state of one Follow. It belongs to one goroutine.
type follower struct {
	roots   []*root
	log     *slog.Logger
	watcher *fsnotify.Watcher
	watched map[string]fs.FileInfo // folders
	files   map[string]*file
	touched map[string]bool // paths that events named since the last scan
	all     bool            // events were lost: read every file
	state   *merged
	logged  map[Problem]bool // doubles and places that were reported

	onProblems func([]Problem) // may be nil
	reported   []Problem       // what report got last

	onNotRead func([]NotRead) // may be nil
	notRead   []NotRead       // what passed got last
}

// root is a folder, or single file, that is followed.
type root struct {
	dir      string
	paths    []string  // of its files when it was last read
	gone     []string  // folders of it that cannot be read now; their files stay as they were
	problems []Problem // of folders
	away     string    // why it cannot be read; said once
}

// file is one file of the folder.
type file struct {
	info    fs.FileInfo
	content *content  // what is in force of it
	good    bool      // content was without problems
	broken  bool      // what the file holds now is not what is in force
	wrong   []Problem // in what the file holds now
}

// Follow reads the folder, or the single file, and calls apply with all there is,
// even if that is nothing. Then it calls apply with each change, until ctx ends,
// which is no error. apply is called by one goroutine, one call at a time.
//
// A file that cannot be understood is reported to logger, and its last good state
// stays in force until it is mended or deleted. If there has been none, what can
// be read of it is in force. A folder that cannot be read any more changes
// nothing either.
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
	var began time.Time // of the burst; zero if there is none
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
			f.log.Warn("events about manifests were lost; reading them all", "error", err)
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
		delete(f.watched, e.Name) // another folder may take its name
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

// scan looks at every file and reads those that changed. It returns what follows
// from that, and when to look again.
func (f *follower) scan() (Delta, time.Duration) {
	seen := make(map[string]bool)
	again := resyncInterval
	var contents []*content
	found := make(map[string]bool) // files
	for _, r := range f.roots {
		f.find(r, seen)
		for _, path := range r.paths {
			if found[path] {
				continue // a folder, and a file in it
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
			_ = f.watcher.Remove(dir) // that it is not watched any more is as well
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

// find lists the files of a root. Those that cannot be reached now stay listed.
func (f *follower) find(r *root, seen map[string]bool) {
	l, err := list(r.dir, func(dir string) { f.watch(dir); seen[dir] = true })
	if err != nil {
		if r.away != err.Error() {
			r.away = err.Error()
			f.log.Error("manifests cannot be read; what was read of them stays in force", event.ManifestsUnreadable.Attr(), "error", err)
		}
		return
	}
	if r.away != "" {
		r.away = ""
		f.log.Info("manifests can be read again", event.ManifestsReadable.Attr(), "folder", r.dir)
	}
	r.gone, r.problems = l.closed, l.problems
	for _, path := range r.paths {
		if r.unreachable(path) && f.files[path] != nil && !slices.Contains(l.paths, path) {
			l.paths = append(l.paths, path)
		}
	}
	slices.Sort(l.paths)
	r.paths = l.paths
}

// unreachable reports whether the file is in a folder that cannot be read now.
func (r *root) unreachable(path string) bool {
	return r.away != "" || slices.ContainsFunc(r.gone, func(dir string) bool {
		return strings.HasPrefix(path, dir+string(filepath.Separator))
	})
}

// watch asks for events of a folder, anew if another folder has its name now.
func (f *follower) watch(dir string) {
	info, err := os.Stat(dir)
	if err != nil {
		return // it went away in this moment
	}
	if old := f.watched[dir]; old != nil {
		if os.SameFile(old, info) {
			return
		}
		_ = f.watcher.Remove(dir) // the other one may be gone already
	}
	if err := f.watcher.Add(dir); err != nil {
		f.log.Warn("changes in a folder of manifests will be seen late", "folder", dir, "within", resyncInterval, "error", err)
		return
	}
	f.watched[dir] = info
}

// check reads a file if it has changed, and says when to look again.
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
			return debounceQuiet // it went away in this moment
		}
		if known.broken && known.info == nil {
			return resyncInterval // that the link leads nowhere has been said
		}
		info = nil
	}
	known.info = info
	f.apply(path, known, opener{limit: maxFollowed}.readFile(path, f.log))
	return resyncInterval
}

// apply puts what was read in force, unless something is wrong with it. A file that has
// become empty is broken too: editors and shells truncate a file before they write it,
// and its policies must not be missing for as long as the writer takes.
func (f *follower) apply(path string, known *file, now *content) {
	now.items = slices.DeleteFunc(now.items, func(it *item) bool { return !it.decides() })
	problems := append(slices.Clone(now.problems), now.inPolicies()...)
	emptied := now.blank && len(known.content.items) > 0
	if emptied {
		problems = append(problems, Problem{
			File: path, Detail: "it is empty; what it held stays in force",
			Hint: "remove the file, or write a comment into it, to take its objects away",
		})
	}
	inForce := "what can be read of the file"
	if known.good {
		inForce = "the last good state of the file"
	}
	known.wrong = problems
	for _, p := range problems {
		f.log.Error("broken manifest", event.ManifestBroken.Attr(), "problem", p, "in_force", inForce)
	}
	for _, text := range Condense(slices.Concat(now.notes, now.outdated)) {
		f.log.Info("something in a manifest changes nothing", "note", text)
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

// inPolicies lists what the engine would not understand in the policies. That
// it would allow nothing there is safe; but if the file was good before, that is
// better.
func (c *content) inPolicies() []Problem {
	var found []Problem
	for _, it := range c.items {
		o, ok := it.object.(*networkingv1.NetworkPolicy)
		if !ok {
			continue
		}
		for _, p := range netpol.Read(o).Problems {
			if CausedBy(p, c.problems) {
				continue
			}
			found = append(found, Problem{
				File: it.origin.File, Document: it.origin.Document, Object: it.name,
				Field: p.Field, Detail: p.Detail, Hint: p.Mend,
			})
		}
	}
	return found
}

// reportProblems reports all that is wrong, if it is something else than last time.
func (f *follower) reportProblems() {
	if f.onProblems == nil {
		return
	}
	var all []Problem
	for _, r := range f.roots {
		if r.away != "" {
			all = append(all, Problem{File: r.dir, Detail: r.away, Hint: "bring it back; what was read of it stays in force"})
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

// logNew logs objects that are there twice and folders that cannot be read, each
// once for as long as it is so.
func (f *follower) logNew(twice []Problem) {
	said := make(map[Problem]bool)
	tell := func(p Problem, text string) {
		if !f.logged[p] {
			f.log.Error(text, "problem", p)
		}
		said[p] = true
	}
	for _, p := range twice {
		tell(p, "manifest passed over")
	}
	for _, r := range f.roots {
		for _, p := range r.problems {
			tell(p, "manifests cannot be read; what was read of them stays in force")
		}
	}
	f.logged = said
}

// reportNotRead tells of objects that are passed over and may change what is allowed.
func (f *follower) reportNotRead(now []NotRead) {
	if slices.Equal(now, f.notRead) {
		return
	}
	f.notRead = now
	if len(now) > 0 {
		f.log.Warn("objects that may change what is allowed are not read", "not_read", TextOf(now))
	}
	if f.onNotRead != nil {
		f.onNotRead(now)
	}
}

// difference compares by identity: a file that was not read again gives the same
// objects.
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
	case *networkingv1.NetworkPolicy:
		r.Kind = "NetworkPolicy"
	}
	return r
}
