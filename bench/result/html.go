package result

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
)

//go:embed report.html
var reportText string

var report = template.Must(template.New("report").Parse(reportText))

// HTML writes the result as one self-contained file.
func (r *Result) HTML(w io.Writer) error {
	type section struct {
		Title  string
		Charts []template.HTML
		Tables []Table
	}
	data := struct {
		*Result
		Place, Command, Time string
		Sections             []section
	}{Result: r, Place: r.place(), Command: r.command(), Time: minutes(r.Took)}
	for _, s := range r.Scenarios() {
		sec := section{Title: s.String(), Tables: r.Tables(s)}
		for _, c := range r.charts(s) {
			sec.Charts = append(sec.Charts, template.HTML(c.svg())) // svg escapes all text in it
		}
		data.Sections = append(data.Sections, sec)
	}
	if err := report.Execute(w, data); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}
