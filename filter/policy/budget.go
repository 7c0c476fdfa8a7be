package policy

// budget bounds the memory of merged rules, in rule entries: of the policies of a namespace,
// or of those that are in no namespace. Without a bound, merged rules would take pods ×
// policies if each pod is selected by a different combination of policies.
type budget struct {
	size   int // entries of the policies, without the large ones
	merged int // entries that are merged for sets of the policies
}

const (
	// grantedToNamespace is the number of entries that may always be merged in a namespace.
	// In addition, it may use as many as its policies have.
	grantedToNamespace = 1 << 15
	// grantedToCluster is the same for policies in no namespace. There are more combinations
	// of them, because their subjects choose among all namespaces, and only administrators
	// write them. Beyond it, a decision searches the rules of one policy after the other.
	grantedToCluster = 1 << 18
)

// grants reports whether a number of entries more may be merged.
func (w *Store) grants(b *budget, entries int) bool {
	granted := grantedToNamespace
	if b == &w.cluster {
		granted = grantedToCluster
	}
	return b.merged+entries <= granted+b.size
}

// budgetOf returns the budget of a policy.
func (w *Store) budgetOf(ref Ref) *budget {
	if ref.clusterWide() {
		return &w.cluster
	}
	return &w.namespaces[ref.Namespace].budget
}
