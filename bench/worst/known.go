package worst

// Named is a recipe with a name.
type Named struct {
	Name string
	Recipe
}

// Known are the recipes of the curve: those that were worst, by what makes them
// large.
func Known() []Named {
	return []Named{
		{"nested-ports", Recipe{Layout: Nested, Ports: 1, Blocks: 5, Identities: 1}},
		{"nested-ports-1-block", Recipe{Layout: Nested, Ports: 1, Blocks: 1, Identities: 1}},
		{"overlapping-ports-products", Recipe{Layout: Overlapping, Ports: 12, Blocks: 12, Identities: 1}},
		{"names-products", Recipe{Names: 12, Blocks: 12, Identities: 1}},
		{"NotIn", Recipe{Layout: Alike, Ports: 1, NotIn: 100, Values: 1, Identities: 3000}},
		{"Exists", Recipe{Layout: Alike, Ports: 1, Exists: 100, Absent: 100, Identities: 3000}},
		{"namespaces", Recipe{Layout: Alike, Ports: 1, Namespaces: 100, Identities: 1000, PodNamespaces: 1000}},
		{"namespaces-and-pods", Recipe{Layout: Alike, Ports: 1, Both: 100, Identities: 1000, PodNamespaces: 1000}},
		{"requirements", Recipe{Layout: Alike, Ports: 1, Requirements: 1000, Identities: 3000}},
		{"excepts", Recipe{Layout: Nested, Ports: 1, Blocks: 1, Excepts: 50, Identities: 1}},
	}
}
