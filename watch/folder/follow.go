package folder

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"sluice/filter/policy"
)

// How long Follow waits. Saving a file is a burst of events, and so is the
// update of a mounted ConfigMap; what a burst leaves behind is what counts.
const (
	quiet = 10 * time.Millisecond // without events ends a burst
	burst = 50 * time.Millisecond // is the longest that one may go on
	// A file that has just become empty is usually about to be written: editors
	// and shells truncate first. For this long its objects stay.
	emptied = 250 * time.Millisecond
	// A look at all files without an event catches what events cannot tell:
	// links that lead out of the folder, file systems without notification, a
	// folder that was away. It costs one stat a file.
	resync = 5 * time.Second
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
			w.DeletePolicy(r.Namespace, r.Name)
		}
	}
	d.Set.Apply(w)
}

// Apply adds the objects to a World, or replaces what it knows of them.
func (o Objects) Apply(w *policy.World) {
	for _, ns := range o.Namespaces {
		w.SetNamespace(ns)
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
	dir     string
	log     *slog.Logger
	watcher *fsnotify.Watcher
	watched map[string]fs.FileInfo // folders
	files   map[string]*file
	touched map[string]bool // paths that events named since the last scan
	all     bool            // events were lost: read every file
	state   *merged
	said    map[Problem]bool // doubles that were reported
	away    string           // why the folder cannot be read; said once

	report   func([]Problem) // may be nil
	reported []Problem       // what report got last
}

// file is one file of the folder.
type file struct {
	info    fs.FileInfo
	content *content  // what is in force of it
	good    bool      // content was without problems
	broken  bool      // what the file holds now is not what is in force
	wrong   []Problem // in what the file holds now
	empty   time.Time // since when it has been empty with its objects still in force
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
	return Source{Dir: dir, Logger: logger}.follow(ctx, apply)
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
		dir: filepath.Clean(s.Dir), log: logger, watcher: watcher,
		watched: make(map[string]fs.FileInfo), files: make(map[string]*file),
		touched: make(map[string]bool), state: merge(nil), said: make(map[Problem]bool),
		report: s.OnProblems,
	}
	if _, err := os.Stat(f.dir); err != nil {
		return fmt.Errorf("follow manifests: %w", err)
	}
	first, _, err := f.scan()
	if err != nil {
		return fmt.Errorf("follow manifests: %w", err)
	}
	f.tell(nil)
	apply(first)
	return f.loop(ctx, apply)
}

func (f *follower) loop(ctx context.Context, apply func(Delta)) error {
	due := time.NewTimer(resync)
	defer due.Stop()
	var began time.Time // of the burst; zero if there is none
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-f.watcher.Events:
			if !ok {
				return fmt.Errorf("follow manifests: the watch of %s has ended", f.dir)
			}
			f.event(e)
		case err, ok := <-f.watcher.Errors:
			if !ok {
				return fmt.Errorf("follow manifests: the watch of %s has ended", f.dir)
			}
			f.log.Warn("events about manifests were lost; reading them all", "error", err)
			f.all = true
		case <-due.C:
			began = time.Time{}
			delta, again, err := f.scan()
			f.tell(err)
			if err == nil && !delta.none() {
				apply(delta)
			}
			due.Reset(again)
			continue
		}
		if began.IsZero() {
			began = time.Now()
		}
		due.Reset(min(quiet, time.Until(began.Add(burst))))
	}
}

func (f *follower) event(e fsnotify.Event) {
	f.touched[e.Name] = true
	if e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename) {
		delete(f.watched, e.Name) // another folder may take its name
	}
}

func (d Delta) none() bool { return len(d.Set.Origins) == 0 && len(d.Deleted) == 0 }

// scan looks at every file and reads those that changed. It returns what follows
// from that, and when to look again.
func (f *follower) scan() (Delta, time.Duration, error) {
	seen := make(map[string]bool)
	paths, err := list(f.dir, func(dir string) { f.watch(dir); seen[dir] = true })
	if err != nil {
		if f.away != err.Error() {
			f.away = err.Error()
			f.log.Error("manifests cannot be read; what was read of them stays in force", "error", err)
		}
		clear(f.watched) // another folder may take its place
		return Delta{}, resync, err
	}
	if f.away != "" {
		f.away = ""
		f.log.Info("manifests can be read again", "folder", f.dir)
	}
	for dir := range f.watched {
		if !seen[dir] {
			_ = f.watcher.Remove(dir) // that it is not watched any more is as well
			delete(f.watched, dir)
		}
	}
	again := resync
	contents := make([]*content, len(paths))
	for i, path := range paths {
		again = min(again, f.look(path))
		contents[i] = f.files[path].content
	}
	maps.DeleteFunc(f.files, func(path string, _ *file) bool {
		_, found := slices.BinarySearch(paths, path)
		return !found
	})
	clear(f.touched)
	f.all = false
	now := merge(contents)
	f.doubles(now.problems)
	delta := difference(f.state, now)
	f.state = now
	return delta, again, nil
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
		f.log.Warn("changes in a folder of manifests will be seen late", "folder", dir, "within", resync, "error", err)
		return
	}
	f.watched[dir] = info
}

// look reads a file if it has changed, and says when to look again.
func (f *follower) look(path string) time.Duration {
	info, err := os.Stat(path)
	known := f.files[path]
	switch {
	case known == nil:
		known = &file{content: &content{}}
		f.files[path] = known
	case f.all || f.touched[path] || err != nil:
	case !known.empty.IsZero() && time.Since(known.empty) >= emptied:
	case known.info != nil && os.SameFile(known.info, info) && known.info.Size() == info.Size() && known.info.ModTime().Equal(info.ModTime()):
		if !known.empty.IsZero() {
			return emptied - time.Since(known.empty)
		}
		return resync
	}
	if err != nil {
		if _, err := os.Lstat(path); err != nil {
			return quiet // it went away in this moment
		}
		if known.broken && known.info == nil {
			return resync // that the link leads nowhere has been said
		}
		info = nil
	}
	known.info = info
	return f.take(known, readFile(path, f.log))
}

// take puts what was read in force, unless something is wrong with it.
func (f *follower) take(known *file, now *content) time.Duration {
	problems := append(slices.Clone(now.problems), now.inPolicies()...)
	if len(problems) == 0 && len(now.items) == 0 && len(known.content.items) > 0 {
		if known.empty.IsZero() {
			known.empty = time.Now()
		}
		if left := emptied - time.Since(known.empty); left > 0 {
			return left
		}
	}
	known.empty = time.Time{}
	inForce := "what can be read of the file"
	if known.good {
		inForce = "the last good state of the file"
	}
	known.wrong = problems
	for _, p := range problems {
		f.log.Error("broken manifest", "problem", p, "in_force", inForce)
	}
	switch {
	case len(problems) == 0:
		if known.broken {
			f.log.Info("manifest mended", "objects", len(now.items))
		}
		known.content, known.good, known.broken = now, true, false
	case known.good:
		known.broken = true
	default:
		known.content, known.broken = now, true
	}
	return resync
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
		w := policy.NewWorld()
		w.SetPolicy(o)
		for _, p := range w.Problems() {
			found = append(found, Problem{
				File: it.origin.File, Document: it.origin.Document, Object: it.name,
				Field: p.Field, Detail: p.Detail, Mend: p.Mend,
			})
		}
	}
	return found
}

// tell reports all that is wrong, if it is something else than last time. away is
// why the folder cannot be read.
func (f *follower) tell(away error) {
	if f.report == nil {
		return
	}
	var all []Problem
	if away != nil {
		all = append(all, Problem{File: f.dir, Detail: away.Error(), Mend: "bring it back; what was read of it stays in force"})
	}
	for _, path := range slices.Sorted(maps.Keys(f.files)) {
		all = append(all, f.files[path].wrong...)
	}
	all = append(all, f.state.problems...)
	if !slices.Equal(all, f.reported) {
		f.reported = all
		f.report(all)
	}
}

// doubles reports objects that are there twice, each once.
func (f *follower) doubles(problems []Problem) {
	said := make(map[Problem]bool, len(problems))
	for _, p := range problems {
		if !f.said[p] {
			f.log.Error("manifest passed over", "problem", p)
		}
		said[p] = true
	}
	f.said = said
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
