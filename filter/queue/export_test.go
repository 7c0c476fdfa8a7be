package queue

// Fail makes the worker of the first queue fail with err, as if its socket had returned err.
// It may be called only from Evaluator.Evaluate, while the worker runs.
func (q *Queues) Fail(err error) { q.workers[0].fail(err) }
