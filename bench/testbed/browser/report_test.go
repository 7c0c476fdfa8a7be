package main

import (
	"slices"
	"testing"
)

func reportOf(t *testing.T, b *browser, s screen) *shown {
	t.Helper()
	return show(t, b, output(t, "report", "-f", shop, "-n", "pci", "--date", "2026-01-31", "-o", "html"), "", reportDrawn, s)
}

const visible = `e => { const r = e.getBoundingClientRect(); return r.width > 0 && r.height > 0; }`

// The links at the top of the page lead to its parts, and the page works without scripts.
func TestReportLinks(t *testing.T) {
	p := reportOf(t, chromium(t), desktop())
	if n := get[int](p, `document.scripts.length`); n != 0 {
		t.Errorf("the report has %d scripts", n)
	}
	links := get[[]string](p, `[...document.querySelectorAll("nav a")].map(a => a.hash)`)
	if len(links) < 3 {
		t.Fatalf("the report has the links %v, want one to each part", links)
	}
	for _, link := range links {
		p.click(`document.querySelector("nav a[href='` + link + `']")`)
		p.wait(`location.hash === "` + link + `"`)
		p.is("the part that "+link+" leads to", `String((r => r.top < innerHeight && r.bottom > 0)(document.querySelector(location.hash).getBoundingClientRect()))`, "true")
		p.run(`scrollTo(0, 0)`)
	}
	p.has("the text of the report", `document.body.innerText`, "pci/vault", "2026-01-31", "sha256:", "CiliumNetworkPolicy", "pci/migrate", "8443", "198.51.100.0/24")
	p.fits()
	p.picture("report")
}

// On a phone, rows are shown as cards in which each field has its heading, and no text is cut off.
func TestReportPhone(t *testing.T) {
	b := chromium(t)
	p := reportOf(t, b, phone())
	p.fits()
	wide := get[[]string](p, `[...document.querySelectorAll("body *")].filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0 && getComputedStyle(e).display !== "inline").map(e => e.tagName + " " + e.innerText.slice(0, 60))`)
	if len(wide) > 0 {
		t.Errorf("these are cut off: %q", wide)
	}
	heads := get[[]string](p, `[...document.querySelectorAll("td")].filter(`+visible+`).map(e => getComputedStyle(e, "::before").content)`)
	if len(heads) == 0 || slices.Contains(heads, "none") || slices.Contains(heads, `""`) {
		t.Errorf("the fields have the headings %q", heads)
	}
	p.picture("report-phone")
	dark := phone()
	dark.dark = true
	d := reportOf(t, b, dark)
	d.is("the background in the dark", `getComputedStyle(document.body).backgroundColor`, "rgb(18, 22, 29)")
}
