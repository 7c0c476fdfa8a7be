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
	// grantedToNamespace is the number by which the merged entries of a namespace may exceed the
	// entries of its policies.
	grantedToNamespace = 1 << 15
	// grantedToCluster is the same bound for the policies in no namespace. It is larger for two
	// reasons: their subjects choose among all namespaces, so there are more combinations of
	// policies; and only administrators write them. If a set of policies exceeds the budget, a
	// decision searches the rules of one policy after the other.
	grantedToCluster = 1 << 18
)

// grants reports whether the budget allows merging the given number of further entries.
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
