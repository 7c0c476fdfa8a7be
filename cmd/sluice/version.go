package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// release is the version that the build has set with -ldflags "-X main.release=v1", or empty.
// The build of an image sets it, because Go finds no repository there to read the version from.
var release string

// version returns the version of the program: release if it is set, otherwise the version of
// the module, otherwise the commit.
func version() string {
	if release != "" {
		return release
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	if v != "" && v != "(devel)" {
		return v
	}
	revision, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+dirty"
		}
	}
	if revision == "" {
		return "unknown"
	}
	return revision[:min(12, len(revision))] + dirty
}

// versionLine returns the text that sluice version prints.
func versionLine() string {
	v := versionInfo()
	return fmt.Sprintf("sluice %s %s %s", v.Version, v.Go, v.Platform)
}

// versions is the JSON that sluice version prints.
type versions struct {
	Version  string `json:"version"`
	Go       string `json:"go"`       // version of the compiler, as in "go1.26.8"
	Platform string `json:"platform"` // as in "linux/amd64"
}

func versionInfo() versions {
	return versions{version(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
}

func versionCommand(e env) *cobra.Command {
	format := "text"
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Long: `Version prints the version of the program, which is that of its module or the commit,
and what it was built with and for.`,
		Example: `  sluice version
  sluice version -o json`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			var err error
			if format == "json" {
				enc := json.NewEncoder(e.stdout)
				enc.SetIndent("", "  ")
				err = enc.Encode(versionInfo())
			} else {
				_, err = fmt.Fprintln(e.stdout, versionLine())
			}
			if err != nil {
				return fmt.Errorf("write the version: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().VarP(newChoiceFlag(&format, "text", "json"), "output", "o", "text or json")
	return cmd
}
