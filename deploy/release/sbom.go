package main

import (
	"debug/buildinfo"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// sbom writes the bill of materials: the modules that each program names in its build information, Go's
// standard library, and the packages in the image.
func (o options) sbom(built []program, packages string) error {
	components := map[string]cdx.Component{}
	for _, b := range built {
		info, err := buildinfo.ReadFile(b.path)
		if err != nil {
			return fmt.Errorf("read what %s was built from: %w", b.path, err)
		}
		add(components, "pkg:golang/std@"+strings.TrimPrefix(info.GoVersion, "go"), "std", strings.TrimPrefix(info.GoVersion, "go"), "")
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			add(components, "pkg:golang/"+m.Path+"@"+m.Version, m.Path, m.Version, m.Sum)
		}
	}
	for line := range strings.Lines(packages) {
		fields := strings.Split(strings.TrimSpace(line), "\t")
		if len(fields) != 3 {
			return fmt.Errorf("read the packages of the image: there is a line %q", line)
		}
		name, version, arch := fields[0], fields[1], fields[2]
		purl := fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s", name, strings.NewReplacer("+", "%2B", ":", "%3A").Replace(version), arch)
		add(components, purl, name, version, "")
	}
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{Component: &cdx.Component{
		BOMRef: "sluice", Type: cdx.ComponentTypeApplication, Name: "sluice", Version: o.version,
		Licenses: &cdx.Licenses{{License: &cdx.License{ID: "Apache-2.0"}}},
	}}
	var all []cdx.Component
	for _, c := range components {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b cdx.Component) int { return strings.Compare(a.BOMRef, b.BOMRef) })
	bom.Components = &all
	f, err := os.Create(filepath.Join(o.out, "sluice_"+o.version+".cdx.json"))
	if err != nil {
		return fmt.Errorf("write the bill of materials: %w", err)
	}
	defer f.Close()
	if err := cdx.NewBOMEncoder(f, cdx.BOMFileFormatJSON).SetPretty(true).Encode(bom); err != nil {
		return fmt.Errorf("write the bill of materials: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("write the bill of materials: %w", err)
	}
	return nil
}

// add adds a component, with its package URL as the key. sum is the module's checksum in go.sum, or
// empty.
func add(components map[string]cdx.Component, purl, name, version, sum string) {
	c := cdx.Component{BOMRef: purl, Type: cdx.ComponentTypeLibrary, Name: name, Version: version, PackageURL: purl}
	if sum != "" {
		c.Properties = &[]cdx.Property{{Name: "go.sum", Value: sum}}
	}
	components[purl] = c
}
