package main

import (
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// flowsOf opens the matrix page of the small cluster with flows.
func flowsOf(t *testing.T, b *browser, by, fragment string, s screen) *shown {
	t.Helper()
	return show(t, b, output(t, "matrix", "-f", shop, "--flows", "testdata/flows.jsonl", "--by", by, "-o", "html"), fragment, matrixDrawn, s)
}

const (
	markOf     = `.innerText.trim()`
	legendText = `[...document.querySelectorAll(".legend output")].slice(5).map(e => e.textContent).join(" ")`
)

// What was seen is in the cells as signs, not only as colors, and in the panel with counts and times.
func TestMatrixSeen(t *testing.T) {
	p := flowsOf(t, chromium(t), "workload", "", desktop())
	p.has("what the page tells about the flows", `document.getElementById("flows").innerText`, "Flows: 6 in 1 file, 2026-11-26 10:00:00 to 11:00:00 UTC.", `"Never used" means only: not in these flows.`)
	p.has("the notes", `[...document.querySelectorAll(".notes")].map(e => e.textContent).join("; ")`, "shop/tools → pci/vault TCP 5432", "Not counted: 1", "gone/<b>x</b> 1")
	p.is("a cell with a used and a tried pair", cellAt("shop/web", "pci/vault")+markOf, "1 of 2 ✓!")
	p.is("a closed cell that was open", cellAt("shop/tools", "pci/vault")+markOf, "– !≠")
	p.is("an open cell that was never used", cellAt("shop/web", "shop/tools")+markOf, "all ○")
	p.has("its name", cellAt("shop/web", "shop/tools")+".getAttribute('aria-label')", "every port: all ○, never used in these flows")
	p.click(cellAt("shop/tools", "pci/vault"))
	p.has("what was seen", detailText, "!≠ TCP 5432: allowed 1 time, 2026-11-26 10:30:00; closed now: the flows may be from another version of the policies")
	p.run(`release()`)
	p.click(cellAt("198.51.100.0/24", "pci/vault"))
	p.has("an open port that was denied", detailText, "≠ TCP 22: denied 1 time", "open now", "○ never used in these flows: TCP, UDP, SCTP, ICMP")
	p.run(`release()`)
	p.click(cellAt("shop/web", "pci/vault")) // it opens
	p.is("the used pod", cellAt("shop/web-7c9-a", "pci/vault")+markOf, "=8443 ✓")
	p.click(cellAt("shop/web-7c9-a", "pci/vault"))
	p.has("its flows", detailText, "✓ TCP 8443: allowed 2 times, 2026-11-26 10:00:00 to 10:10:00")
	if get[bool](p, `[...document.querySelectorAll("b")].some(e => e.textContent === "x")`) {
		t.Error("the page takes the name of a pod for markup")
	}
}

// The filter keeps the rows and columns with what it selects. Links keep it.
func TestMatrixSeenFilter(t *testing.T) {
	b := chromium(t)
	p := flowsOf(t, b, "workload", "", desktop())
	p.choose("seen", "tried")
	p.is("the rows that tried something", rowTexts, "shop/tools shop/web")
	p.is("the columns that were tried", columnTexts, "pci/vault")
	p.choose("seen", "used")
	p.is("the rows that used something", rowTexts, "shop/web")
	p.choose("seen", "changed")
	p.is("the rows with another verdict then", rowTexts, "shop/tools 198.51.100.0/24")
	p.is("the sums", legendText, "0 1 1 2")
	p.choose("seen", "unused")
	p.has("a cell that is not selected", cellAt("shop/web", "pci/vault")+".className", "dim")
	p.choose("port", "TCP 8443")
	p.choose("seen", "tried")
	p.is("the rows that tried a port", rowTexts, "shop/web")
	p.has("the address", fragment, "seen=tried", "port=TCP 8443")
	link := get[string](p, `document.getElementById("link").hash`)
	flowsOf(t, b, "workload", link[1:], desktop()).is("the rows behind the link", rowTexts, "shop/web")
	p.click(`document.getElementById("reset")`)
	p.is("the sums of all", legendText, "1 24 2 2")

	without := matrixOf(t, b, "workload", "seen=tried", desktop())
	without.is("the rows of a page without flows", rowTexts, "pci/vault shop/proxy shop/tools shop/web node-1 world 198.51.100.0/24")
	if get[bool](without, `document.getElementById("seen").checkVisibility()`) {
		t.Error("a page without flows has the filter")
	}
}

// Keyboard and phone reach what was seen as they reach the reasons.
func TestMatrixSeenByKeyboardAndTouch(t *testing.T) {
	b := chromium(t)
	p := flowsOf(t, b, "workload", "", desktop())
	p.run(`document.getElementById("seen").focus()`)
	p.must(chromedp.KeyEvent("c")) // the first option that begins with c: closed, tried
	p.wait(`rows.length === 2`)
	p.run(cellAt("shop/tools", "pci/vault") + `.focus()`)
	p.must(chromedp.KeyEvent(kb.ArrowDown))
	p.has("the reasons below", detailText, "shop/web → pci/vault", "✓ TCP 8443: allowed 2 times", "! TCP 8443: denied 1 time")
	phone := flowsOf(t, b, "namespace", "", phone())
	phone.fits()
	if !get[bool](phone, `document.getElementById("sum-changed").checkVisibility()`) {
		t.Error("the legend on a phone lacks a sign")
	}
	phone.touch(cellAt("shop/*", "pci/*"))
	phone.has("what was seen after a touch", detailText, "shop/* → pci/*", "✓ TCP 8443: allowed 2 times", "! TCP 8443: denied 1 time")
	phone.fits()
}
