package watch

// BeforeDrafts has f called before each step that prepares a large policy, on the
// goroutine that does it. It is called before Run.
func (k *Keeper) BeforeDrafts(f func()) { k.before = f }
