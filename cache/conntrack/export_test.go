package conntrack

// DefaultMarks are the marks that tests use.
var DefaultMarks = Marks{Allowed: 0x10, Revoked: 0x20}

// Limit sets the maximum number of keys of one address and of one shard.
func (a *TrackedFlows) Limit(perAddr, perShard int) { a.perAddr, a.perShard = perAddr, perShard }

// Keys returns the number of keys in two ways: counted, and as the sum of the totals of the
// shards. The two must be equal.
func (a *TrackedFlows) Keys() (counted, sum int) {
	for i := range a.shards {
		sum += a.shards[i].total
		for _, set := range a.shards[i].of {
			counted += len(set.keys)
		}
	}
	return counted, sum
}

// SetBuffer sets the size of the receive buffer, in bytes.
func (e *Events) SetBuffer(bytes int) error { return widen(e.conn, bytes) }
