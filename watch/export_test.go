package watch

// BeforePrepare sets a function to call before each step that prepares a large policy, on
// the goroutine that runs the step. It must be called before Run.
func (k *Controller) BeforePrepare(f func()) { k.beforePrepare = f }
