package conntrack

// DefaultMarks are the marks that tests use.
var DefaultMarks = Marks{Allowed: 0x10, Revoked: 0x20}

// Limit sets how many keys are known of one address, and how many of one shard.
func (a *TrackedFlows) Limit(perAddr, perShard int) { a.perAddr, a.perShard = perAddr, perShard }

// Keys is how many keys are known, counted and summed up, which must be the same.
func (a *TrackedFlows) Keys() (counted, sum int) {
	for i := range a.shards {
		sum += a.shards[i].total
		for _, set := range a.shards[i].of {
			counted += len(set.keys)
		}
	}
	return counted, sum
}
