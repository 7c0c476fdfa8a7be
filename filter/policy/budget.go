package policy

// budget bounds the memory of merged rules, in rule entries. Each namespace has one for its
// policies, and the policies in no namespace share one. Without a bound, merged rules would
// take memory in proportion to pods × policies if each pod is selected by a different
// combination of policies.
type budget struct {
	size   int // entries of all policies but the large ones
	merged int // entries that are merged for the policy sets
}

const (
	// grantedToNamespace is the number of entries that may always be merged in a namespace.
	// In addition, it may use as many as its policies have.
	grantedToNamespace = 1 << 15
	// grantedToCluster is the corresponding number for policies in no namespace. It is larger
	// because their subjects choose among all namespaces, so that pods are selected by more
	// combinations of these policies, and because only administrators write them. Rules beyond
	// it are not merged: a decision searches them policy by policy.
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
