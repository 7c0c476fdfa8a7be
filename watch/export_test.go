package watch

// BeforePrepare has f called before each step that prepares a large policy, on the
// goroutine that does it. It is called before Run.
func (k *Controller) BeforePrepare(f func()) { k.beforePrepare = f }
