package main

import (
	"os"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// The page of 1,000 pods is smaller than 1 MB, and its table contains only elements for visible cells.
// The test prints how fast the page is, because this depends on the machine.
func TestMatrixOfThousandPods(t *testing.T) {
	b := chromium(t)
	dir := t.TempDir()
	if err := (size{50, 5, 4}).write(dir); err != nil {
		t.Fatal(err)
	}
	for _, by := range []string{"namespace", "workload", "pod"} {
		t.Run(by, func(t *testing.T) {
			file := output(t, "matrix", "-f", dir, "--by", by, "-o", "html")
			info, err := os.Stat(file)
			if err != nil {
				t.Fatal(err)
			}
			if info.Size() >= 1e6 {
				t.Errorf("the page has %d bytes, want less than 1 MB", info.Size())
			}
			p := show(t, b, file, "", matrixDrawn, desktop())
			t.Logf("%d KB; first paint after %.0f ms, drawn after %.0f ms", info.Size()/1000,
				get[float64](p, `new Promise(done => new PerformanceObserver(list => done(list.getEntries()[0].startTime)).observe({type: "paint", buffered: true}))`),
				get[float64](p, `performance.getEntriesByName("drawn")[0].startTime`))
			if n := get[int](p, `document.querySelectorAll("*").length`); n > 8000 {
				t.Errorf("the page has %d elements: the table has more than what is visible", n)
			}
			p.picture("thousand-" + by)
			thousand(t, p)
		})
	}
}

// thousand scrolls through the table, and prints how long the frames take.
func thousand(t *testing.T, p *shown) {
	frames := get[[]float64](p, `new Promise(done => {
		const s = document.getElementById("scroll"), times = [];
		let last = performance.now();
		const step = now => {
			times.push(now - last);
			last = now;
			s.scrollTop += 40;
			s.scrollLeft += 40;
			if (times.length < 150) requestAnimationFrame(step); else done(times.slice(1).sort((a, b) => a - b));
		};
		requestAnimationFrame(step);
	})`)
	t.Logf("150 frames while scrolling: half within %.0f ms, 95%% within %.0f ms, all within %.0f ms", frames[len(frames)/2], frames[len(frames)*95/100], frames[len(frames)-1])
	p.run(`grid.focus(0, 0)`)
	p.must(chromedp.KeyEvent(kb.End, chromedp.KeyModifiers(chromedp.ModifierCtrl)))
	p.is("the last cell", `String(document.activeElement === grid.element(rows.length - 1, columns.length - 1))`, "true")
	visible := get[bool](p, `(r => r.right <= document.getElementById("scroll").getBoundingClientRect().right + 1 && r.bottom <= innerHeight + 1)(document.activeElement.getBoundingClientRect())`)
	if !visible {
		t.Error("the last cell is not visible")
	}
	// The elements of rows are in the order of the table, in whatever order scrolling drew them.
	if !get[bool](p, `(list => list.length > 0 && list.every((n, i) => !i || n === list[i - 1] + 1))([...document.querySelectorAll(".body > .row")].map(e => Number(e.getAttribute("aria-rowindex"))))`) {
		t.Error("the rows are not in order")
	}
	p.must(chromedp.KeyEvent(kb.Home, chromedp.KeyModifiers(chromedp.ModifierCtrl)))
	p.is("the first cell", `String(document.activeElement === grid.element(0, 0))`, "true")
}
