package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

const shop = "testdata/shop.yaml"

// matrixOf opens the matrix page of the small cluster.
func matrixOf(t *testing.T, b *browser, by, fragment string, s screen) *shown {
	t.Helper()
	return show(t, b, output(t, "matrix", "-f", shop, "--by", by, "-o", "html"), fragment, matrixDrawn, s)
}

// Scripts that return elements of the matrix page.
func cellAt(from, to string) string {
	return fmt.Sprintf(`grid.element(rows.findIndex(l => l.full === %q), columns.findIndex(l => l.full === %q))`, from, to)
}
func rowHead(from string) string {
	return fmt.Sprintf(`grid.element(rows.findIndex(l => l.full === %q), -1)`, from)
}
func columnHead(to string) string {
	return fmt.Sprintf(`grid.element(-1, columns.findIndex(l => l.full === %q))`, to)
}

// Scripts that return texts of the matrix page.
const (
	rowTexts    = `[...document.querySelectorAll("[role=rowheader]")].map(e => e.innerText).join(" ")`
	columnTexts = `[...document.querySelectorAll("[role=columnheader]")].slice(1).map(e => e.innerText).join(" ")`
	detailText  = `document.getElementById("detail").innerText`
	crumbsText  = `document.getElementById("crumbs").innerText`
	fragment    = `decodeURIComponent(location.hash.replaceAll("+", " "))`
	focusText   = `(a => [a.getAttribute("role"), a.getAttribute("aria-colindex"), a.parentNode.getAttribute("aria-rowindex")].join(" "))(document.activeElement)`
)

func TestMatrixFilters(t *testing.T) {
	p := matrixOf(t, chromium(t), "workload", "", desktop())
	p.is("the rows", rowTexts, "pci/vault shop/proxy shop/tools shop/web node-1 world 198.51.100.0/24")
	p.choose("fromName", "SHOP/t")
	p.is("the rows of a name", rowTexts, "shop/tools")
	p.choose("toName", "vault")
	p.is("the columns of a name", columnTexts, "pci/vault")
	p.choose("fromName", "nothing")
	p.is("the reasons when nothing matches", detailText, "Nothing matches the filters.")
	p.click(`document.getElementById("reset")`)
	p.choose("to", "pci")
	p.is("the columns of a namespace", columnTexts, "vault")
	p.click(`document.getElementById("open")`)
	p.is("the open rows", rowTexts, "shop/proxy shop/web node-1 198.51.100.0/24")
	p.choose("port", "TCP 8443")
	p.is("the cell at a port", cellAt("shop/web", "pci/vault")+".className.split(' ')[1]", "part")
	p.choose("from", "-")
	p.is("the rows without a namespace", rowTexts, "node-1 198.51.100.0/24")
	p.click(`document.getElementById("swap")`)
	p.is("the swapped rows", rowTexts, "vault")
}

// A page that is limited to ports or to a namespace states this.
func TestMatrixOfQuestion(t *testing.T) {
	b := chromium(t)
	p := show(t, b, output(t, "matrix", "-f", shop, "-n", "pci", "--port", "8443", "--port", "53/udp", "-o", "html"), "", matrixDrawn, desktop())
	p.is("what the page is about", `document.querySelector(".about p").innerText`, "Only flows from or to pci; at port 8443, 53/UDP")
	p.click(`document.querySelector("#crumbs [data-to=pci]")`)
	p.is("the columns into pci", columnTexts, "vault")
	p.is("the cell of both ports", cellAt("shop/proxy", "pci/vault")+".innerText", "8443,53/UDP")
	p.is("its name", cellAt("shop/proxy", "pci/vault")+".getAttribute('aria-label')", "open: 8443,53/UDP")
	p.is("the legend", `document.getElementById("word-open").innerText`, "open")
	p.click(`document.querySelector("#crumbs [data-from=pci]")`)
	p.is("the rows out of pci", rowTexts, "vault")
}

// A link keeps the filters, the level and the selected cell. The browser's back button undoes steps.
func TestMatrixPermalink(t *testing.T) {
	b := chromium(t)
	p := matrixOf(t, b, "namespace", "", desktop())
	p.choose("by", "workload")
	p.choose("to", "pci")
	p.choose("fromName", "tools")
	p.click(cellAt("shop/tools", "pci/vault"))
	p.has("the address", fragment, "by=workload", "to=pci", "fromName=tools", "cell=shop/tools → pci/vault")
	link := get[string](p, `document.getElementById("link").hash`)
	reasons := get[string](p, detailText)

	other := matrixOf(t, b, "namespace", strings.TrimPrefix(link, "#"), desktop())
	other.is("the rows behind the link", rowTexts, "shop/tools")
	other.is("the level behind the link", `document.getElementById("by").value`, "workload")
	other.is("the reasons behind the link", detailText, reasons)
	other.has("the kept cell behind the link", `document.querySelector(".kept").className`, "closed")

	p.run("history.back()")
	p.wait(`document.getElementById("to").value === ""`)
	p.is("the rows after going back", rowTexts, "pci/vault shop/proxy shop/tools shop/web node-1 world 198.51.100.0/24")
	bad := matrixOf(t, b, "workload", "by=nonsense&from=gone&cell=a", desktop())
	bad.is("the rows of a link into another cluster", rowTexts, "pci/vault shop/proxy shop/tools shop/web node-1 world 198.51.100.0/24")
}

// Rows of namespaces expand into workloads, and rows of workloads into pods that policies treat
// differently.
func TestMatrixOpens(t *testing.T) {
	p := matrixOf(t, chromium(t), "namespace", "", desktop())
	p.is("the rows", rowTexts, "pci/* shop/* node-1 world 198.51.100.0/24")
	p.has("the reasons of a namespace's cell", "(openDetail => "+detailText+")(point(1, 0))", "in part", "of 4 pairs", "shop/web-7c9-a → pci/vault")
	x, y := p.center(cellAt("shop/*", "pci/*"))
	p.must(chromedp.MouseEvent(chromedp.MouseMoved, x, y))
	p.has("the reasons of what the mouse points at", detailText, "shop/* → pci/*", "open ▸")
	p.click(`document.getElementById("below")`)
	p.is("the path that the panel opens", crumbsText, "‹ back from all › shop → to all › pci")
	p.run("history.back()")
	p.wait("rows.length === 5")
	p.click(rowHead("shop/*"))
	p.is("the rows of shop", rowTexts, "proxy tools web")
	p.is("the columns beside them", columnTexts, "pci/* shop/* node-1 world 198.51.100.0/24")
	p.click(columnHead("pci/*"))
	p.is("the columns of pci", columnTexts, "vault")
	p.is("the path", crumbsText, "‹ back from all › shop → to all › pci")
	p.click(cellAt("shop/web", "pci/vault"))
	p.is("the pods of web", rowTexts, "web-7c9-a web-7c9-b")
	p.is("the cell of one pod", cellAt("shop/web-7c9-a", "pci/vault")+".innerText", "=8443")
	p.is("the path to the pods", crumbsText, "‹ back from all › shop › web → to all › pci")
	p.click(`document.querySelector("#crumbs [data-scope=shop]")`)
	p.is("the rows after a step up", rowTexts, "proxy tools web")
	p.click(`document.getElementById("back")`)
	p.wait(`rows.length === 2`)
	p.is("the path after going back", crumbsText, "‹ back from all › shop › web → to all › pci")
	p.click(`document.querySelectorAll("#crumbs [data-scope='']")[0]`)
	p.click(cellAt("shop/*", "pci/vault"))
	p.is("the rows that a cell opens to", rowTexts, "proxy tools web")
}

// The keyboard alone reaches the reasons of each cell.
func TestMatrixKeyboard(t *testing.T) {
	p := matrixOf(t, chromium(t), "namespace", "", desktop())
	if stops := get[int](p, `document.querySelectorAll('#grid [tabindex="0"]').length`); stops != 1 {
		t.Errorf("%d elements of the grid are in the tab order, want 1", stops)
	}
	p.run(`document.getElementById("link").focus()`)
	p.must(chromedp.KeyEvent(kb.Tab))
	if get[bool](p, `document.activeElement.id === "scroll"`) {
		p.must(chromedp.KeyEvent(kb.Tab))
	}
	p.is("the first stop", focusText, "gridcell 2 2")
	p.must(chromedp.KeyEvent(kb.ArrowDown))
	p.is("the cell below", focusText, "gridcell 2 3")
	p.has("its reasons", detailText, "shop/* → pci/*")
	p.must(chromedp.KeyEvent(" "))
	p.has("the address after Space", fragment, "cell=shop/* → pci/*")
	p.must(chromedp.KeyEvent(kb.Escape))
	p.must(chromedp.KeyEvent(kb.Enter))
	p.is("the path that Enter opens", crumbsText, "‹ back from all › shop → to all › pci")
	p.is("the focus after it", focusText, "gridcell 2 3")
	p.must(chromedp.KeyEvent(kb.Enter)) // neither shop/tools nor pci/vault expands further
	p.has("the reasons that Enter keeps", detailText, "shop/tools → pci/vault", "closed", "no rule of pci/vault allows it")
	p.must(chromedp.KeyEvent(kb.ArrowUp))
	p.has("the kept reasons", detailText, "shop/tools → pci/vault")
	p.must(chromedp.KeyEvent(kb.Escape))
	p.has("the address after Escape", fragment, "to=pci")
	p.must(chromedp.KeyEvent(kb.ArrowLeft))
	p.is("the heading", focusText, "rowheader 1 2")
	p.has("what is known of it", detailText, "shop/proxy")
	p.must(chromedp.KeyEvent(kb.End))
	p.is("the end of the row", focusText, "gridcell 2 2")
	p.must(chromedp.KeyEvent(kb.ArrowUp))
	p.is("the heading of the column", focusText, "columnheader 2 1")
	p.must(chromedp.KeyEvent(kb.Escape))
	p.wait(`rows.length === 5`)
	p.is("the path that Escape returns to", crumbsText, "from all → to all")
	for role, want := range map[string]int{"grid": 1, "row": 6, "rowheader": 5, "columnheader": 6, "gridcell": 25} {
		if n := get[int](p, fmt.Sprintf(`document.querySelectorAll("[role=%s]").length`, role)); n != want {
			t.Errorf("%d elements have the role %s, want %d", n, role, want)
		}
	}
}

// The page has every answer of the command's JSON, with the same texts.
func TestMatrixHasAllAnswers(t *testing.T) {
	b := chromium(t)
	dir := t.TempDir()
	if err := (size{3, 4, 2}).write(dir); err != nil {
		t.Fatal(err)
	}
	for _, manifests := range []string{shop, dir} {
		var want struct {
			Inputs string
			Flows  []struct {
				From, To, State string
				Answers         []answer
				OwnNode         []answer
			}
		}
		decode(t, &want, "matrix", "-f", manifests, "--by", "pod", "-o", "json")
		p := show(t, b, output(t, "matrix", "-f", manifests, "--by", "pod", "-o", "html"), "", matrixDrawn, desktop())
		got := get[map[string]pageCell](p, `Object.fromEntries(model.data.from.flatMap((_, i) => model.data.to.map((_, j) => {
			const kind = model.data.kinds[model.kind(i, j)];
			return [model.party("from", i).full + " → " + model.party("to", j).full, {state: kind.state, answers: model.answers(kind.answers, "", [[i, j]]), ownNode: model.answers(kind.ownNode || [], "", [[i, j]])}];
		})))`)
		decided := 0
		for _, c := range got {
			if c.State != "" {
				decided++
			}
		}
		if decided != len(want.Flows) {
			t.Errorf("%s: the page has %d answers, and the command %d", manifests, decided, len(want.Flows))
		}
		for _, f := range want.Flows {
			c := got[f.From+" → "+f.To]
			if c.State != f.State || !slices.Equal(texts(c.Answers), texts(f.Answers)) || !slices.Equal(texts(c.OwnNode), texts(f.OwnNode)) {
				t.Errorf("%s: %s → %s is %+v on the page, want %+v", manifests, f.From, f.To, c, f)
			}
		}
		p.has("the inputs", `document.querySelector(".stamp").innerText`, want.Inputs, "T", "Z inputs sha256:")
	}
}

type answer struct {
	Ports   any
	Verdict string
	Why     string
}

type pageCell struct {
	State            string
	Answers, OwnNode []answer
}

func texts(list []answer) (all []string) {
	for _, a := range list {
		ports, is := a.Ports.(string)
		if !is {
			ports = strings.Trim(strings.ReplaceAll(fmt.Sprintf("%q", a.Ports), `" "`, ", "), `[]"`)
		}
		all = append(all, ports+" "+a.Verdict+" "+a.Why)
	}
	return all
}

// The page lists the pods that are left out and the kinds that were not read. Cells that allow only
// declared ports are green. Texts are never taken as markup.
func TestMatrixTells(t *testing.T) {
	b := chromium(t)
	p := matrixOf(t, b, "pod", "", desktop())
	p.has("what was left out", `[...document.querySelectorAll(".notes")].map(e => e.textContent).join("; ")`, "pci/migrate: it has ended (Succeeded)", "CiliumNetworkPolicy")
	p.run(cellAt("shop/web-7c9-a", "pci/vault") + `.focus()`)
	p.has("the reasons of least privilege", detailText, "only declared ports", "TCP 8443", "allowed by pci/vault, ingress rule 1")
	green := get[[]int](p, `getComputedStyle(`+cellAt("shop/web-7c9-a", "pci/vault")+`).backgroundColor.match(/\d+/g).map(Number)`)
	if green[1] <= green[0] || green[1] <= green[2] {
		t.Errorf("the color of least privilege is %v, which is not green", green)
	}
	p.run(cellAt("pci/vault", "shop/web-7c9-a") + `.focus()`)
	p.has("a reason with markup", detailText, `</script><img src=x onerror=alert(1)>{from}`)
	if get[int](p, `document.querySelectorAll("img").length`) != 0 {
		t.Error("the page takes the name of a rule for markup")
	}
	dark := desktop()
	dark.dark = true
	d := matrixOf(t, b, "pod", "", dark)
	d.is("the background in the dark", `getComputedStyle(document.body).backgroundColor`, "rgb(17, 21, 28)")
	p.run(`window.dispatchEvent(new Event("beforeprint"))`)
	if n := get[int](p, `document.querySelectorAll("#print tbody tr").length`); n != 8 {
		t.Errorf("%d rows are printed, want 8", n)
	}
}

// On a phone, the first touch of a cell shows the reasons, the second expands it. The panel leaves room
// for the table.
func TestMatrixPhone(t *testing.T) {
	p := matrixOf(t, chromium(t), "namespace", "", phone())
	p.fits()
	p.touch(cellAt("shop/*", "pci/*"))
	p.has("the reasons after a touch", detailText, "shop/* → pci/*", "of 4 pairs")
	p.is("the path after a touch", crumbsText, "from all → to all")
	p.touch(cellAt("shop/*", "pci/*"))
	p.is("the path after the second touch", crumbsText, "‹ back from all › shop → to all › pci")
	p.touch(cellAt("shop/tools", "pci/vault"))
	p.has("the reasons of two pods", detailText, "shop/tools → pci/vault", "no rule of pci/vault allows it")
	p.fits()
	bounds := get[[]float64](p, `(() => {
		const table = document.getElementById("scroll").getBoundingClientRect(), panel = document.getElementById("detail").getBoundingClientRect(), cell = `+cellAt("shop/tools", "pci/vault")+`.getBoundingClientRect();
		return [table.height, panel.top - table.bottom, table.bottom - cell.bottom, innerHeight - panel.bottom];
	})()`)
	if bounds[0] < 150 || bounds[1] < 0 || bounds[2] < 0 || bounds[3] < 0 {
		t.Errorf("the table is %v pixels high, above the panel by %v and below the cell by %v; the panel ends %v above the end of the window", bounds[0], bounds[1], bounds[2], bounds[3])
	}
	p.click(`document.getElementById("close")`)
	p.has("the panel after closing", `document.getElementById("detail").className`, "idle")
}
