package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"sluice/filter/flow/flowfile"
	"sluice/filter/policy/matrix"
	"sluice/filter/policy/seen"
	"sluice/watch/manifests"
)

// checkFlows returns an error if the standard input is read twice.
func (o *matrixOptions) checkFlows() error {
	stdins := 0
	for _, file := range o.flows {
		switch file {
		case "":
			return errors.New("--flows is empty: give a file with flows, or - for the standard input")
		case manifests.Stdin:
			stdins++
		}
	}
	if stdins > 1 {
		return errors.New("--flows - is given twice: the standard input can be read once")
	}
	if slices.Contains(o.flows, manifests.Stdin) {
		return o.alsoStdin("--flows", manifests.Stdin)
	}
	return nil
}

// layFlows reads the files of --flows, and lays their flows over a matrix.
func layFlows(e env, m *matrix.Matrix, files []string) error {
	if len(files) == 0 {
		return nil
	}
	t := m.Tally()
	for _, file := range files {
		if err := countFlows(e, t, file); err != nil {
			return fmt.Errorf("read flows: %w", err)
		}
	}
	m.Lay(t)
	return nil
}

// countFlows adds the flows of one file. If the file has lines, and none of them has a known form, it
// returns an error, because a wrong file would mean that nothing is ever used.
func countFlows(e env, t *seen.Tally, file string) error {
	in, name := e.stdin, "standard input"
	if file != manifests.Stdin {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close() // the file is only read, so an error is harmless
		in, name = f, file
	}
	r, err := flowfile.NewReader(in)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	t.Files++
	known := 0
	var wrong *flowfile.LineError
	for {
		f, err := r.Next()
		var line *flowfile.LineError
		switch {
		case errors.Is(err, io.EOF) && known == 0 && wrong != nil:
			return fmt.Errorf("%s: %w: give %s", name, wrong, flowfile.Forms)
		case errors.Is(err, io.EOF) && known == 0:
			return fmt.Errorf("%s: it is empty: give %s", name, flowfile.Forms)
		case errors.Is(err, io.EOF):
			return nil
		case errors.As(err, &line):
			if wrong == nil {
				wrong = line
			}
			t.Skip(seen.LeftLines, name+": "+line.Error(), 1)
			continue
		case err != nil:
			return fmt.Errorf("%s: %w", name, err)
		}
		if known++; f.Skip != "" {
			t.Skip(f.Skip, "", 1)
			continue
		}
		t.Add(f.Record, f.First)
	}
}
