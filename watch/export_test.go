package watch

// BeforePrepare sets a function that is called before each step of preparing a large
// policy, on the goroutine that runs the step. It must be called before Run.
func (c *Controller) BeforePrepare(f func()) { c.beforePrepare = f }
