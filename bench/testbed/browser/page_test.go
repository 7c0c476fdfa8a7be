package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// program returns the path of the program sluice that writes the pages.
func program(t *testing.T) string {
	t.Helper()
	path := os.Getenv("SLUICE")
	if path == "" {
		t.Skip("SLUICE is not set to the program: run make test-browser")
	}
	return path
}

// output writes the output of sluice into a file, and returns the file's path.
func output(t *testing.T, args ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "page.html")
	if err := (writer{sluice: program(t)}).write(t.Context(), file, args...); err != nil {
		t.Fatal(err)
	}
	return file
}

// chromium starts a browser for a test and its subtests.
func chromium(t *testing.T) *browser {
	t.Helper()
	program(t)
	b, stop, err := start(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return b
}

// shown is a page in a test.
type shown struct {
	*tab
	t *testing.T
}

// show opens a page, and waits until it is drawn. When the test ends, it fails if the browser has
// reported a fault.
func show(t *testing.T, b *browser, file, fragment, ready string, s screen) *shown {
	t.Helper()
	page, stop, err := b.open(file, fragment, s)
	if err != nil {
		t.Fatal(err)
	}
	p := &shown{page, t}
	t.Cleanup(func() {
		page.mu.Lock()
		faults := page.faults
		page.mu.Unlock()
		for _, f := range faults {
			t.Errorf("the browser reports: %s", f)
		}
		stop()
	})
	p.wait(ready)
	return p
}

func (p *shown) wait(condition string) {
	p.t.Helper()
	if err := p.waitFor(condition); err != nil {
		p.t.Fatal(err)
	}
}

func (p *shown) must(steps ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	if err := p.do(steps...); err != nil {
		p.t.Fatal(err)
	}
}

// get evaluates JavaScript, and returns the result.
func get[T any](p *shown, script string) T {
	p.t.Helper()
	result, err := eval[T](p.tab, script)
	if err != nil {
		p.t.Fatal(err)
	}
	return result
}

// run evaluates JavaScript for its effect.
func (p *shown) run(script string) {
	p.t.Helper()
	get[bool](p, "(() => {"+script+"; return true})()")
}

// is fails the test unless script returns the text want.
func (p *shown) is(what, script, want string) {
	p.t.Helper()
	if got := get[string](p, script); got != want {
		p.t.Errorf("%s is %q, want %q", what, got, want)
	}
}

// has fails the test unless script returns a text that contains all parts.
func (p *shown) has(what, script string, parts ...string) {
	p.t.Helper()
	got := get[string](p, script)
	for _, part := range parts {
		if !strings.Contains(got, part) {
			p.t.Errorf("%s is %q, without %q", what, got, part)
		}
	}
}

// center returns the center of the element that the script returns. The element must be visible in the
// window.
func (p *shown) center(element string) (x, y float64) {
	p.t.Helper()
	at := get[[]float64](p, fmt.Sprintf("(r => [r.x + r.width / 2, r.y + r.height / 2])((%s).getBoundingClientRect())", element))
	return at[0], at[1]
}

// click clicks on the element that the script returns.
func (p *shown) click(element string) {
	p.t.Helper()
	x, y := p.center(element)
	p.must(chromedp.MouseClickXY(x, y))
}

// touch touches the element that the script returns.
func (p *shown) touch(element string) {
	p.t.Helper()
	x, y := p.center(element)
	p.must(chromedp.TapXY(x, y))
}

// choose sets a form field to a value, as a user does.
func (p *shown) choose(id, value string) {
	p.t.Helper()
	p.run(fmt.Sprintf(`const e = document.getElementById(%q); e.value = %q; e.dispatchEvent(new Event("input", {bubbles: true})); e.dispatchEvent(new Event("change", {bubbles: true}))`, id, value))
}

// fits fails the test if the page is wider than the window.
func (p *shown) fits() {
	p.t.Helper()
	if over := get[float64](p, "document.documentElement.scrollWidth - window.innerWidth"); over > 0 {
		p.t.Errorf("the page is %v pixels wider than the window", over)
	}
}

// picture writes a picture of the page into the directory SLUICE_PICTURES, if it is set.
func (p *shown) picture(name string) {
	p.t.Helper()
	dir := os.Getenv("SLUICE_PICTURES")
	if dir == "" {
		return
	}
	if err := p.tab.picture(filepath.Join(dir, name+".webp")); err != nil {
		p.t.Error(err)
	}
}

// decode decodes the JSON output of sluice.
func decode(t *testing.T, into any, args ...string) {
	t.Helper()
	text, err := os.ReadFile(output(t, args...))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatal(err)
	}
}
