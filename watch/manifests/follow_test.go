package manifests

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sluice/filter/event"
)

// following is a Follow under test, with the sum of its deltas.
type following struct {
	t      *testing.T
	dir    string
	deltas chan Delta
	state  map[string]bool
	log    *logBuffer
}

// logBuffer is a log that tests can wait on.
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

// next applies one delta.
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
				f.t.Errorf("%s was deleted and had not been there", name)
			}
			delete(f.state, name)
		}
		for name := range d.Set.Origins {
			f.state[name] = true
		}
		return d
	case <-time.After(waitTimeout):
		f.t.Fatalf("no change was noticed; there are %v; the log says\n%s", f.state, f.log)
	}
	return Delta{}
}

// until applies deltas until the state is as wanted.
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

// says waits until the log contains a text.
func (f *following) says(text string) {
	f.t.Helper()
	timeout := time.After(waitTimeout)
	for !strings.Contains(f.log.String(), text) {
		select {
		case <-f.log.wrote:
		case d := <-f.deltas:
			f.t.Fatalf("something changed where nothing should: %+v", d)
		case <-timeout:
			f.t.Fatalf("the log does not say %q:\n%s", text, f.log)
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

func TestFollowGoesWithFiles(t *testing.T) {
	f := follow(t, write(t, map[string]string{"web.yaml": web}))
	f.until("Pod default/web")
	f.put("shop.yaml", shop)
	f.until("Namespace shop, Pod default/web")
	f.put("web.yaml", strings.Replace(web, "10.0.0.1", "10.0.0.9", 1))
	if d := f.next(); len(d.Set.Pods) != 1 || d.Set.Pods[0].Addrs[0].String() != "10.0.0.9" || len(d.Set.Namespaces) != 0 {
		t.Errorf("a changed pod gave %+v", d)
	}
	f.must(os.Remove(filepath.Join(f.dir, "web.yaml")))
	f.until("Namespace shop")
}

func TestFollowBeginsWithAnEmptyFolder(t *testing.T) {
	f := follow(t, t.TempDir())
	f.until("")
	f.put("shop.yaml", shop)
	f.until("Namespace shop")
}

func TestFollowGoesWithSubfolders(t *testing.T) {
	f := follow(t, t.TempDir())
	f.put("a/b/web.yaml", web)
	f.until("Pod default/web")
	f.put("a/b/shop.yaml", shop)
	f.until("Namespace shop, Pod default/web")
	// Another directory takes the name, and is watched instead.
	f.must(os.Rename(filepath.Join(f.dir, "a"), filepath.Join(t.TempDir(), "gone")))
	f.until("")
	f.put("a/b/web.yaml", web)
	f.until("Pod default/web")
	f.put("a/b/closed.yaml", closed)
	f.until("NetworkPolicy default/closed, Pod default/web")
	f.must(os.RemoveAll(filepath.Join(f.dir, "a")))
	f.until("")
}

func TestFollowSeesEditorsThatRename(t *testing.T) {
	f := follow(t, write(t, map[string]string{"all.yaml": web}))
	f.put(".all.yaml.new", web+"---"+shop)
	f.must(os.Rename(filepath.Join(f.dir, ".all.yaml.new"), filepath.Join(f.dir, "all.yaml")))
	f.until("Namespace shop, Pod default/web")
	// An editor that keeps a backup moves the old file away and writes a new one.
	f.must(os.Rename(filepath.Join(f.dir, "all.yaml"), filepath.Join(f.dir, "all.yaml~")))
	f.put("all.yaml", closed)
	f.until("NetworkPolicy default/closed")
}

func TestFollowSeesConfigMapsSwap(t *testing.T) {
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

func TestFollowOfOneFile(t *testing.T) {
	dir := write(t, map[string]string{"all.yaml": web, "other.yaml": shop})
	f := follow(t, filepath.Join(dir, "all.yaml"))
	f.until("Pod default/web")
	put(t, filepath.Join(dir, "all.yaml"), closed)
	f.until("NetworkPolicy default/closed")
}

// A series of events is one change: half of it must never be in force.
func TestFollowCoalescesBursts(t *testing.T) {
	f := follow(t, t.TempDir())
	stage := t.TempDir()
	put(t, filepath.Join(stage, "web.yaml"), web)
	put(t, filepath.Join(stage, "shop.yaml"), shop)
	put(t, filepath.Join(stage, "closed.yaml"), closed)
	f.must(os.Rename(stage, filepath.Join(f.dir, "sub")))
	f.next()
	if got := f.names(); got != "Namespace shop, NetworkPolicy default/closed, Pod default/web" {
		t.Errorf("after the first change there is %q", got)
	}
}

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
			f.says(tt.says)
			f.says("last good state")
			// The other files are still followed, and this one's objects are still in
			// force.
			f.must(os.Remove(filepath.Join(f.dir, "web.yaml")))
			f.until("Namespace shop, NetworkPolicy default/closed")
			if d := len(f.state); d != 2 {
				t.Errorf("%d objects are in force, want 2", d)
			}
			f.put("all.yaml", shop)
			f.until("Namespace shop")
			f.says(event.ManifestRepaired.Attr().String())
		})
	}
}

func TestBrokenFileThatIsDeletedTakesItsObjectsAlong(t *testing.T) {
	f := follow(t, write(t, map[string]string{"all.yaml": closed, "web.yaml": web}))
	f.put("all.yaml", "a: [")
	f.says(event.ManifestBroken.Attr().String())
	f.must(os.Remove(filepath.Join(f.dir, "all.yaml")))
	f.until("Pod default/web")
}

// A file that is truncated and written later must not lose its policies in between.
func TestTruncatedFileKeepsItsObjects(t *testing.T) {
	for name, text := range map[string]string{
		"no bytes": "", "white space": " \n\t\r\n", "a byte order mark": "\ufeff", "empty UTF-16": "\xff\xfe",
	} {
		t.Run(name, func(t *testing.T) {
			f := follow(t, write(t, map[string]string{"all.yaml": closed}))
			f.put("all.yaml", text)
			f.says("it is empty; its former objects stay in force")
			f.put("shop.yaml", shop)
			f.until("Namespace shop, NetworkPolicy default/closed")
			f.put("all.yaml", web)
			f.until("Namespace shop, Pod default/web")
			f.says(event.ManifestRepaired.Attr().String())
		})
	}
}

func TestTruncatedFileLosesItsObjects(t *testing.T) {
	for name, text := range map[string]string{
		"a comment": "# nothing\n", "empty documents": "---\n---\n", "null": "null\n",
	} {
		t.Run(name, func(t *testing.T) {
			f := follow(t, write(t, map[string]string{"all.yaml": closed}))
			f.put("all.yaml", "")
			f.says("it is empty")
			f.put("all.yaml", text)
			f.until("")
		})
	}
	t.Run("removed", func(t *testing.T) {
		f := follow(t, write(t, map[string]string{"all.yaml": closed}))
		f.put("all.yaml", "")
		f.says("it is empty")
		f.must(os.Remove(filepath.Join(f.dir, "all.yaml")))
		f.until("")
	})
}

// The file was never good: its readable part is in force, and stays so.
func TestTruncatedBrokenFileKeepsWhatIsInForce(t *testing.T) {
	f := follow(t, write(t, map[string]string{"all.yaml": closed + "---\na: ["}))
	f.put("all.yaml", "")
	f.says("it is empty")
	f.put("shop.yaml", shop)
	f.until("Namespace shop, NetworkPolicy default/closed")
}

// A file that held no objects may be empty.
func TestEmptyFileWithoutObjectsIsNoProblem(t *testing.T) {
	f := follow(t, write(t, map[string]string{"all.yaml": "", "was.yaml": "# nothing\n"}))
	f.put("was.yaml", "")
	f.put("shop.yaml", shop)
	f.until("Namespace shop")
	if log := f.log.String(); strings.Contains(log, "it is empty") {
		t.Errorf("an empty file is reported:\n%s", log)
	}
}

func TestDoubleIsReportedOnceAndTakesOver(t *testing.T) {
	f := follow(t, write(t, map[string]string{"a.yaml": web}))
	f.put("b.yaml", strings.Replace(web, "10.0.0.1", "10.0.0.2", 1))
	f.says("the same object is in")
	f.put("shop.yaml", shop)
	f.until("Namespace shop, Pod default/web")
	if n := strings.Count(f.log.String(), "the same object"); n != 1 {
		t.Errorf("it was said %d times:\n%s", n, f.log)
	}
	f.must(os.Remove(filepath.Join(f.dir, "a.yaml")))
	if d := f.next(); len(d.Set.Pods) != 1 || d.Set.Pods[0].Addrs[0].String() != "10.0.0.2" {
		t.Errorf("after the first is gone: %+v", d)
	}
}

func TestFolderThatGoesAwayChangesNothing(t *testing.T) {
	dir := filepath.Join(write(t, map[string]string{"in/web.yaml": web}), "in")
	f := follow(t, dir)
	f.must(os.Rename(dir, dir+"-away"))
	f.says(event.ManifestsUnreadable.Attr().String())
	f.must(os.Rename(dir+"-away", dir))
	f.says(event.ManifestsReadable.Attr().String())
	f.put("shop.yaml", shop)
	f.until("Namespace shop, Pod default/web")
}

func TestFollowNeedsAFolder(t *testing.T) {
	err := Follow(t.Context(), filepath.Join(t.TempDir(), "none"), slog.New(slog.DiscardHandler), func(Delta) {
		t.Error("a change in a directory that does not exist")
	})
	if err == nil {
		t.Error("no error")
	}
}
