// Package prometheus builds the real prometheus and promtool for tests and pictures.
package prometheus

import (
	"context"
	"io"
	"path/filepath"

	"sluice/bench/testbed/goprogram"
)

const (
	// Version is the version of Prometheus whose programs are built.
	Version = "v0.316.0"
	module  = "github.com/prometheus/prometheus"

	// Enable is the environment variable that enables the tests with these programs.
	Enable = "SLUICE_TEST_ALERTS"
)

// Server builds the program prometheus, unless it is already there, and returns its path. See
// goprogram.Module.Build.
func Server(ctx context.Context, log io.Writer) (string, error) { return built(ctx, "prometheus", log) }

// Promtool is like Server, for the program promtool.
func Promtool(ctx context.Context, log io.Writer) (string, error) { return built(ctx, "promtool", log) }

// built builds a program. The build tag leaves out all optional service discovery, which takes most of the
// time to build and is not needed.
func built(ctx context.Context, name string, log io.Writer) (string, error) {
	m := goprogram.Module{Name: "prometheus", Version: Version, Path: module, Flags: []string{"-tags=remove_all_sd", "-ldflags=-s -w"}}
	dir, err := m.Build(ctx, log, map[string]string{name: module + "/cmd/" + name})
	return filepath.Join(dir, name), err
}
