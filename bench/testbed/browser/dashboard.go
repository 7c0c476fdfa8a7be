package main

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"os"
	"path/filepath"
)

//go:embed dashboard.html
var dashboardPage string

// dashboardPicture describes how to draw the dashboard. Grafana is not among the packages of Go, Debian
// and npm. So a page draws the panels with uPlot, the library with which Grafana draws its lines.
type dashboardPicture struct {
	data  string // the file that bench/testbed/dashboard has written
	uplot string // the directory of uPlot's package
}

// write writes the page into a file.
func (d dashboardPicture) write(file string) error {
	text, err := os.ReadFile(d.data)
	if err != nil {
		return fmt.Errorf("read the data of the dashboard: %w", err)
	}
	var data map[string]any
	if err := json.Unmarshal(text, &data); err != nil {
		return fmt.Errorf("read the data of the dashboard: %w", err)
	}
	script, err := os.ReadFile(filepath.Join(d.uplot, "dist", "uPlot.iife.min.js"))
	if err != nil {
		return fmt.Errorf("read uPlot: %w", err)
	}
	style, err := os.ReadFile(filepath.Join(d.uplot, "dist", "uPlot.min.css"))
	if err != nil {
		return fmt.Errorf("read uPlot: %w", err)
	}
	page, err := template.New("dashboard").Parse(dashboardPage)
	if err != nil {
		return err
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	// The script and the style come from a library, and not from input.
	err = page.Execute(out, map[string]any{"Data": data, "Script": template.JS(script), "Style": template.CSS(style)}) //nolint:gosec // see above
	if err != nil {
		return fmt.Errorf("write the page of the dashboard: %w", err)
	}
	return out.Close()
}

// pictures takes the pictures of the dashboard's first rows, in both themes.
func (d dashboardPicture) pictures(b *browser, work, out string) error {
	file := filepath.Join(work, "dashboard.html")
	if err := d.write(file); err != nil {
		return err
	}
	wide := desktop()
	wide.height = 1072
	for _, p := range []picture{{name: "dashboard", screen: wide}, {name: "dashboard-dark", screen: wide.inDark()}} {
		p.ready = matrixDrawn
		if err := b.take(p, file, filepath.Join(out, p.name+".png")); err != nil {
			return err
		}
	}
	return nil
}
