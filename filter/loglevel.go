package filter

// LogLevel selects the verdicts that are logged. A higher level logs more. The zero value leaves this
// to a wider scope: the namespace or the node.
type LogLevel uint8

// The levels.
const (
	// LogUnset: the policy or namespace does not set it, so a wider scope decides.
	LogUnset LogLevel = iota
	LogNone
	// LogDenied: denied packets are logged.
	LogDenied
	// LogAll: allowed connections are logged too.
	LogAll
)

// logLevels are the names of the levels, as in flags and annotations.
var logLevels = [...]string{LogUnset: "", LogNone: "none", LogDenied: "denied", LogAll: "all"}

// String returns the level as in flags and annotations; empty for LogUnset.
func (l LogLevel) String() string {
	if int(l) < len(logLevels) {
		return logLevels[l]
	}
	return "invalid"
}

// ParseLogLevel returns the level with the given name: none, denied or all.
func ParseLogLevel(text string) (LogLevel, bool) {
	for l := LogNone; l <= LogAll; l++ {
		if text == l.String() {
			return l, true
		}
	}
	return LogUnset, false
}

// Or returns l, or wider if l is unset.
func (l LogLevel) Or(wider LogLevel) LogLevel {
	if l == LogUnset {
		return wider
	}
	return l
}
