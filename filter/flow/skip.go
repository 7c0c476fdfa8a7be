package flow

// Skip is why a line of a file of flows stands for no attempt to connect. It is empty for a line that
// does. The texts are parts of sentences, as in "40 replies".
type Skip string

// Why lines are skipped.
const (
	SkipReply     Skip = "replies"
	SkipRequest   Skip = "requests of HTTP, DNS and others within connections"
	SkipUnknown   Skip = "packets in an unknown direction: requests or replies"
	SkipNoVerdict Skip = "events without a verdict"
	SkipLog       Skip = "lines of a log without a flow"
)
