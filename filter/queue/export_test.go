package queue

// Fail has the worker of the first queue fail, as an error of its socket does. It
// is to be called by an Evaluator that is asked.
func (q *Queues) Fail(err error) { q.workers[0].fail(err) }
