// Browser shows the pages that sluice writes in Chromium. Its tests use the pages by mouse and by
// keyboard (make test-browser), and the program takes the pictures for README.md (make pictures).
//
// It is a separate module, so that an audit of Sluice need not include the packages that drive a
// browser.
package main

import (
	"context"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func main() {
	var w writer
	flag.StringVar(&w.sluice, "sluice", "bin/sluice", "the program `FILE`")
	flag.StringVar(&w.dir, "in", "", "the `DIR` in which the program runs")
	var manifests []string
	flows := flag.String("flows", "", "the `FILE` with flows that the picture of the matrix with flows shows, relative to the directory of -in")
	flag.Func("f", "the manifests `DIR` that the pictures show, relative to that of -in (repeatable)", func(dir string) error { manifests = append(manifests, dir); return nil })
	var board dashboardPicture
	flag.StringVar(&board.data, "dashboard", "", "take only the pictures of the dashboard, with the data in this `FILE`")
	flag.StringVar(&board.uplot, "uplot", "", "the `DIR` of the package uplot, for -dashboard")
	out := flag.String("o", "", "the `DIR` of the pictures")
	flag.Parse()
	if err := pictures(context.Background(), w, all(manifests, *flows), board, *out); err != nil {
		fmt.Fprintln(os.Stderr, "pictures:", err)
		os.Exit(1)
	}
}

// picture describes a picture of a page.
type picture struct {
	name     string   // with the ending of the format: .webp or .png
	command  []string // the command of sluice that writes the page
	fragment string
	screen   screen
	ready    string // a condition in JavaScript that is true once the page is drawn
}

const (
	matrixDrawn = `performance.getEntriesByName("drawn").length > 0`
	reportDrawn = `document.readyState === "complete"` // the report has no scripts
)

// all returns the pictures to take: each page in the light and in the dark theme.
func all(manifests []string, flows string) (list []picture) {
	var read []string
	for _, dir := range manifests {
		read = append(read, "-f", dir)
	}
	add := func(name string, s screen, ready, fragment string, command ...string) {
		command = append(command, read...)
		list = append(list, picture{name, command, fragment, s, ready})
		s.dark = true
		ending := filepath.Ext(name)
		list = append(list, picture{strings.TrimSuffix(name, ending) + "-dark" + ending, command, fragment, s, ready})
	}
	cell := func(name string) string { return "cell=" + url.QueryEscape(name) }
	wide := desktop()
	wide.height = 760
	add("matrix.webp", wide, matrixDrawn, cell("monitoring/prometheus → shop/payment"), "matrix", "-o", "html")
	add("report.webp", wide, reportDrawn, "", "report", "-n", "pci", "--date", "2026-11-27", "-o", "html")
	add("matrix-phone.webp", phone(), matrixDrawn, "from=shop&to=shop&"+cell("shop/checkout → shop/cart"), "matrix", "-o", "html")
	if flows != "" {
		add("matrix-flows.png", wide, matrixDrawn, cell("shop/recommendations → shop/cart"), "matrix", "--flows", flows, "--from-namespace", "shop", "--to-namespace", "shop,pci", "-o", "html")
	}
	return list
}

func pictures(ctx context.Context, w writer, list []picture, board dashboardPicture, out string) error {
	b, stop, err := start(ctx)
	if err != nil {
		return err
	}
	defer stop()
	work, err := os.MkdirTemp("", "sluice-pictures-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if board.data != "" {
		return board.pictures(b, work, out)
	}
	for _, p := range list {
		file := filepath.Join(work, p.name+".html")
		if err := w.write(ctx, file, p.command...); err != nil {
			return err
		}
		if err := b.take(p, file, filepath.Join(out, p.name)); err != nil {
			return err
		}
	}
	return nil
}

// take takes a picture of the page in file, and writes it to image.
func (b *browser) take(p picture, file, image string) error {
	t, stop, err := b.open(file, p.fragment, p.screen)
	if err != nil {
		return err
	}
	defer stop()
	if err := t.waitFor(p.ready); err != nil {
		t.mu.Lock()
		defer t.mu.Unlock()
		return fmt.Errorf("%w; errors of the page: %q", err, t.faults)
	}
	return t.picture(image)
}

// writer runs a program in a directory.
type writer struct{ sluice, dir string }

// write writes the program's output into a file.
func (w writer) write(ctx context.Context, file string, args ...string) error {
	cmd := exec.CommandContext(ctx, w.sluice, args...)
	cmd.Dir, cmd.Stderr = w.dir, os.Stderr
	text, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s %v: %w", w.sluice, args, err)
	}
	return os.WriteFile(file, text, 0o644)
}
