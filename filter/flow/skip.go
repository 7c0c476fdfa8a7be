package flow

// Skip is the reason why a line of a file of flows is not an attempt to connect; empty if it is one. The
// texts are parts of sentences, as in "replies: 40".
type Skip string

// The reasons to skip a line.
const (
	SkipReply     Skip = "replies"
	SkipRequest   Skip = "requests of HTTP, DNS and others within connections"
	SkipUnknown   Skip = "packets in an unknown direction: requests or replies"
	SkipNoVerdict Skip = "events without a verdict"
	SkipLog       Skip = "lines of a log without a flow"
	SkipRevoked   Skip = "connections from before, which changed policies have closed"
)
