package manifests

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sluice/filter"
	"sluice/filter/event"
	"sluice/filter/policy"
)

// following is a running Follow, with the state that its deltas lead to.
type following struct {
	t      *testing.T
	dir    string
	deltas chan Delta
	state  map[string]bool // names of the objects that exist
	log    *logBuffer
}

// logBuffer keeps log lines. wrote receives a token after each line.
type logBuffer struct {
	mu    sync.Mutex
	text  bytes.Buffer
	wrote chan struct{}
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case b.wrote <- struct{}{}:
	default:
	}
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// waitTimeout bounds each wait of these tests.
const waitTimeout = 2 * time.Minute

// follow starts Follow and waits for its first delta.
func follow(t *testing.T, dir string) *following {
	t.Helper()
	f := &following{
		t: t, dir: dir, deltas: make(chan Delta), state: make(map[string]bool),
		log: &logBuffer{wrote: make(chan struct{}, 1)},
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Follow(ctx, dir, slog.New(slog.NewTextHandler(f.log, nil)), func(d Delta) {
			select {
			case f.deltas <- d:
			case <-ctx.Done():
			}
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Follow ended with %v", err)
		}
	})
	f.next()
	return f
}

// next waits for the next delta and applies it to the state.
func (f *following) next() Delta {
	f.t.Helper()
	select {
	case d := <-f.deltas:
		for _, r := range d.Deleted {
			name := r.Kind + " " + r.Namespace + "/" + r.Name
			if r.Namespace == "" {
				name = r.Kind + " " + r.Name
			}
			if !f.state[name] {
				f.t.Errorf("%s was deleted but did not exist", name)
			}
			delete(f.state, name)
		}
		for name := range d.Set.Origins {
			f.state[name] = true
		}
		return d
	case <-time.After(waitTimeout):
		f.t.Fatalf("no change was reported; the objects are %v; log:\n%s", f.state, f.log)
	}
	return Delta{}
}

// until applies deltas until the names of the objects equal the wanted ones.
func (f *following) until(want string) {
	f.t.Helper()
	for f.names() != want {
		f.next()
	}
}

func (f *following) names() string { return names(Objects{Origins: originsOf(f.state)}) }

func originsOf(state map[string]bool) map[string]Origin {
	out := make(map[string]Origin, len(state))
	for name := range state {
		out[name] = Origin{}
	}
	return out
}

// awaitLog waits until the log contains text. It fails the test if a delta arrives first.
func (f *following) awaitLog(text string) {
	f.t.Helper()
	timeout := time.After(waitTimeout)
	for !strings.Contains(f.log.String(), text) {
		select {
		case <-f.log.wrote:
		case d := <-f.deltas:
			f.t.Fatalf("unexpected change: %+v", d)
		case <-timeout:
			f.t.Fatalf("the log does not contain %q:\n%s", text, f.log)
		}
	}
}

func (f *following) put(name, text string) { put(f.t, filepath.Join(f.dir, name), text) }

func (f *following) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// New, changed and deleted files change the objects in force.
func TestFollowFiles(t *testing.T) {
	f := follow(t, write(t, map[string]string{"web.yaml": web}))
	f.until("Pod default/web")
	f.put("shop.yaml", shop)
	f.until("Namespace shop, Pod default/web")
	f.put("web.yaml", strings.Replace(web, "10.0.0.1", "10.0.0.9", 1))
	if d := f.next(); len(d.Set.Pods) != 1 || d.Set.Pods[0].Addrs[0].String() != "10.0.0.9" || len(d.Set.Namespaces) != 0 {
		t.Errorf("the delta of a changed pod is %+v", d)
	}
	f.must(os.Remove(filepath.Join(f.dir, "web.yaml")))
	f.until("Namespace shop")
}

// A directory may be empty at first.
func TestFollowEmptyDirectory(t *testing.T) {
	f := follow(t, t.TempDir())
	f.until("")
	f.put("shop.yaml", shop)
	f.until("Namespace shop")
}

// Subdirectories that are created, replaced and deleted are followed.
func TestFollowSubdirectories(t *testing.T) {
	f := follow(t, t.TempDir())
	f.put("a/b/web.yaml", web)
	f.until("Pod default/web")
	f.put("a/b/shop.yaml", shop)
	f.until("Namespace shop, Pod default/web")
	// Another directory gets the name, and is watched in place of the first.
	f.must(os.Rename(filepath.Join(f.dir, "a"), filepath.Join(t.TempDir(), "gone")))
	f.until("")
	f.put("a/b/web.yaml", web)
	f.until("Pod default/web")
	f.put("a/b/closed.yaml", closed)
	f.until("NetworkPolicy default/closed, Pod default/web")
	f.must(os.RemoveAll(filepath.Join(f.dir, "a")))
	f.until("")
}

// A file that an editor replaces by renaming is read again.
func TestFollowRenamingEditors(t *testing.T) {
	f := follow(t, write(t, map[string]string{"all.yaml": web}))
	f.put(".all.yaml.new", web+"---"+shop)
	f.must(os.Rename(filepath.Join(f.dir, ".all.yaml.new"), filepath.Join(f.dir, "all.yaml")))
	f.until("Namespace shop, Pod default/web")
	// An editor that keeps a backup moves the old file away and writes a new one.
	f.must(os.Rename(filepath.Join(f.dir, "all.yaml"), filepath.Join(f.dir, "all.yaml~")))
	f.put("all.yaml", closed)
	f.until("NetworkPolicy default/closed")
}

// A mounted ConfigMap is updated by replacing the link ..data.
func TestFollowConfigMap(t *testing.T) {
	dir := write(t, map[string]string{"..1/all.yaml": web})
	f := &following{t: t, dir: dir}
	f.must(os.Symlink("..1", filepath.Join(dir, "..data")))
	f.must(os.Symlink("..data/all.yaml", filepath.Join(dir, "all.yaml")))
	f = follow(t, dir)
	f.until("Pod default/web")
	f.put("..2/all.yaml", shop)
	f.must(os.Symlink("..2", filepath.Join(dir, "..data_tmp")))
	f.must(os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	f.must(os.RemoveAll(filepath.Join(dir, "..1")))
	f.until("Namespace shop")
}

// If a single file is followed, the other files of its directory are ignored.
func TestFollowOneFile(t *testing.T) {
	dir := write(t, map[string]string{"all.yaml": web, "other.yaml": shop})
	f := follow(t, filepath.Join(dir, "all.yaml"))
	f.until("Pod default/web")
	put(t, filepath.Join(dir, "all.yaml"), closed)
	f.until("NetworkPolicy default/closed")
}

// Several file events in quick succession lead to a single delta, so that no delta contains only
// a part of their changes.
func TestFollowCoalescesBursts(t *testing.T) {
	f := follow(t, t.TempDir())
	stage := t.TempDir()
	put(t, filepath.Join(stage, "web.yaml"), web)
	put(t, filepath.Join(stage, "shop.yaml"), shop)
	put(t, filepath.Join(stage, "closed.yaml"), closed)
	f.must(os.Rename(stage, filepath.Join(f.dir, "sub")))
	f.next()
	if got := f.names(); got != "Namespace shop, NetworkPolicy default/closed, Pod default/web" {
		t.Errorf("objects after the first delta: %q", got)
	}
}

// While a file is broken, its last good state stays in force.
func TestBrokenFileKeepsItsLastGoodState(t *testing.T) {
	tests := map[string]struct{ text, says string }{
		"syntax":        {"a: [", "correct the YAML"},
		"unknown field": {strings.Replace(closed, "podSelector", "podSelecter", 1), "spec.podSelecter"},
		"bad CIDR":      {strings.Replace(closed, "{podSelector: {}}", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.01/8}}]}]}", 1), "ipBlock.cidr"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := follow(t, write(t, map[string]string{"all.yaml": closed + "---" + shop, "web.yaml": web}))
			f.put("all.yaml", tt.text)
			f.awaitLog(tt.says)
			f.awaitLog("last good state")
			// The other files are still followed, and the objects of the broken one are
			// still in force.
			f.must(os.Remove(filepath.Join(f.dir, "web.yaml")))
			f.until("Namespace shop, NetworkPolicy default/closed")
			if d := len(f.state); d != 2 {
				t.Errorf("%d objects are in force, want 2", d)
			}
			f.put("all.yaml", shop)
			f.until("Namespace shop")
			f.awaitLog(event.ManifestRepaired.Attr().String())
		})
	}
}

// The objects of a broken file are deleted with the file.
func TestDeletedBrokenFileLosesItsObjects(t *testing.T) {
	f := follow(t, write(t, map[string]string{"all.yaml": closed, "web.yaml": web}))
	f.put("all.yaml", "a: [")
	f.awaitLog(event.ManifestBroken.Attr().String())
	f.must(os.Remove(filepath.Join(f.dir, "all.yaml")))
	f.until("Pod default/web")
}

// A file that is truncated first and written later does not lose its policies in between.
func TestTruncatedFileKeepsItsObjects(t *testing.T) {
	for name, text := range map[string]string{
		"no bytes": "", "white space": " \n\t\r\n", "a byte order mark": "\ufeff", "empty UTF-16": "\xff\xfe",
	} {
		t.Run(name, func(t *testing.T) {
			f := follow(t, write(t, map[string]string{"all.yaml": closed}))
			f.put("all.yaml", text)
			f.awaitLog("it is empty; its former objects stay in force")
			f.put("shop.yaml", shop)
			f.until("Namespace shop, NetworkPolicy default/closed")
			f.put("all.yaml", web)
			f.until("Namespace shop, Pod default/web")
			f.awaitLog(event.ManifestRepaired.Attr().String())
		})
	}
}

// The objects of a truncated file are removed if the file is deleted, or if a comment or an
// empty document is written into it.
func TestTruncatedFileLosesItsObjects(t *testing.T) {
	for name, text := range map[string]string{
		"a comment": "# nothing\n", "empty documents": "---\n---\n", "null": "null\n",
	} {
		t.Run(name, func(t *testing.T) {
			f := follow(t, write(t, map[string]string{"all.yaml": closed}))
			f.put("all.yaml", "")
			f.awaitLog("it is empty")
			f.put("all.yaml", text)
			f.until("")
		})
	}
	t.Run("removed", func(t *testing.T) {
		f := follow(t, write(t, map[string]string{"all.yaml": closed}))
		f.put("all.yaml", "")
		f.awaitLog("it is empty")
		f.must(os.Remove(filepath.Join(f.dir, "all.yaml")))
		f.until("")
	})
}

// A file has errors from the beginning, so that only its readable objects are in force. When the
// file is truncated, these objects stay in force.
func TestTruncatedBrokenFileKeepsItsObjects(t *testing.T) {
	f := follow(t, write(t, map[string]string{"all.yaml": closed + "---\na: ["}))
	f.put("all.yaml", "")
	f.awaitLog("it is empty")
	f.put("shop.yaml", shop)
	f.until("Namespace shop, NetworkPolicy default/closed")
}

// An empty file that had no objects before is not reported.
func TestEmptyFileWithoutObjects(t *testing.T) {
	f := follow(t, write(t, map[string]string{"all.yaml": "", "was.yaml": "# nothing\n"}))
	f.put("was.yaml", "")
	f.put("shop.yaml", shop)
	f.until("Namespace shop")
	if log := f.log.String(); strings.Contains(log, "it is empty") {
		t.Errorf("an empty file without objects is reported:\n%s", log)
	}
}

// A duplicate object is reported once, and takes effect when the first object is deleted.
func TestDuplicateIsReportedOnceAndTakesOver(t *testing.T) {
	f := follow(t, write(t, map[string]string{"a.yaml": web}))
	f.put("b.yaml", strings.Replace(web, "10.0.0.1", "10.0.0.2", 1))
	f.awaitLog("the same object is in")
	f.put("shop.yaml", shop)
	f.until("Namespace shop, Pod default/web")
	if n := strings.Count(f.log.String(), "the same object"); n != 1 {
		t.Errorf("the duplicate was reported %d times:\n%s", n, f.log)
	}
	f.must(os.Remove(filepath.Join(f.dir, "a.yaml")))
	if d := f.next(); len(d.Set.Pods) != 1 || d.Set.Pods[0].Addrs[0].String() != "10.0.0.2" {
		t.Errorf("after the first has been deleted: %+v", d)
	}
}

// While the directory is missing, its objects stay in force.
func TestMissingDirectoryChangesNothing(t *testing.T) {
	dir := filepath.Join(write(t, map[string]string{"in/web.yaml": web}), "in")
	f := follow(t, dir)
	f.must(os.Rename(dir, dir+"-away"))
	f.awaitLog(event.ManifestsUnreadable.Attr().String())
	f.must(os.Rename(dir+"-away", dir))
	f.awaitLog(event.ManifestsReadable.Attr().String())
	f.put("shop.yaml", shop)
	f.until("Namespace shop, Pod default/web")
}

// Follow fails if the directory does not exist at first.
func TestFollowNeedsADirectory(t *testing.T) {
	err := Follow(t.Context(), filepath.Join(t.TempDir(), "none"), slog.New(slog.DiscardHandler), func(Delta) {
		t.Error("a delta of a directory that does not exist")
	})
	if err == nil {
		t.Error("no error")
	}
}

// Changes of a file are followed also for its objects that are in no namespace.
func TestFollowClusterObjects(t *testing.T) {
	right := clusterPolicy("  egress: [{action: Deny, to: [{networks: [192.0.2.0/24]}]}]\n")
	f := follow(t, write(t, map[string]string{"p.yaml": right, "n.yaml": nodeText}))
	f.until("ClusterNetworkPolicy p, Node a.example")
	f.put("p.yaml", strings.Replace(right, "192.0.2.0/24", "192.0.2.1/24", 1))
	f.awaitLog("has bits beyond its prefix length") // the last good state stays in force
	f.put("p.yaml", strings.Replace(right, "192.0.2.0/24", "192.0.2.1/32", 1))
	if d := f.next(); len(d.Set.Policies) != 1 || len(d.Set.Policies[0].Problems) != 0 {
		t.Errorf("after the correction: %+v", d)
	}
	f.put("p.yaml", clusterPolicy("  egress: [{action: Accept, to: [{domainNames: [a.example]}]}]\n"))
	if d := f.next(); len(d.Set.Policies) != 1 || len(d.Set.Policies[0].Problems) != 1 { // not supported, but not broken
		t.Errorf("with a domain name: %+v", d)
	}
	f.must(os.Remove(filepath.Join(f.dir, "p.yaml")))
	f.until("Node a.example")
	f.must(os.Remove(filepath.Join(f.dir, "n.yaml")))
	f.until("")
}

// A delta sets and deletes objects of all kinds in the policy store.
func TestApplyClusterObjects(t *testing.T) {
	objects, _ := read(t, map[string]string{
		"p.yaml": clusterPolicy("  egress: [{action: Deny, to: [{nodes: {matchLabels: {rack: '1'}}}]}]\n"), "n.yaml": nodeText, "web.yaml": web,
	})
	w := policy.NewStore()
	Delta{Set: objects}.Apply(w)
	s, _ := w.Commit()
	toNode := filter.Key{Protocol: filter.TCP, Transport: filter.Ported, Port: 22, Src: netip.MustParseAddr("10.0.0.1").As16(), Dst: netip.MustParseAddr("192.0.2.1").As16()}
	if v := s.Decide(toNode); v.Action != filter.Deny || v.Egress.Rule == nil || v.Egress.Rule.Policy != "p" {
		t.Errorf("to the node: %+v", v)
	}
	if got := len(s.PodRanges()); got != 2 {
		t.Errorf("%d pod ranges of the Node, want 2", got)
	}
	Delta{Deleted: []Ref{{Kind: "Node", Name: "a.example"}, {Kind: "ClusterNetworkPolicy", Name: "p"}}}.Apply(w)
	s, _ = w.Commit()
	if v := s.Decide(toNode); v.Action != filter.Allow {
		t.Errorf("without the policy: %+v", v)
	}
	if got := len(s.PodRanges()); got != 0 {
		t.Errorf("%d pod ranges after the Node was deleted", got)
	}
}
