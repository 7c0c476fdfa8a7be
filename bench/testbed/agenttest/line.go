package agenttest

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"sluice/filter/event"
)

// Line is a line of the agent's log.
type Line map[string]any

// Text returns a field as text, or "" if it is missing.
func (l Line) Text(field string) string {
	if v, ok := l[field]; ok {
		return fmt.Sprint(v)
	}
	return ""
}

// Number returns a field as a number, or 0 if it is missing or not a number.
func (l Line) Number(field string) int {
	n, _ := l[field].(float64)
	return int(n)
}

// Time returns the time at which the line was written.
func (l Line) Time() time.Time {
	t, _ := time.Parse(time.RFC3339Nano, l.Text("time"))
	return t
}

// Is reports whether the line has the event.
func (l Line) Is(e event.Name) bool { return l.Text(event.Key) == string(e) }

// Event matches the lines with an event.
func Event(e event.Name) func(Line) bool {
	return func(l Line) bool { return l.Is(e) }
}

// readable formats a line of the log for people: the time of day, the level, the message,
// and the other fields in the order in which they were logged. Its argument is a text, because a
// Line does not keep this order. A text that is not a line of the log is returned
// unchanged.
func readable(text string) string {
	in := json.NewDecoder(strings.NewReader(text))
	if t, err := in.Token(); err != nil || t != json.Delim('{') {
		return text
	}
	var clock, level, message, rest string
	for in.More() {
		key, err := in.Token()
		var raw json.RawMessage
		if err == nil {
			err = in.Decode(&raw)
		}
		if err != nil {
			return text
		}
		value := string(raw)
		isText := json.Unmarshal(raw, &value) == nil
		switch key {
		case "time":
			clock = value
			if t, err := time.Parse(time.RFC3339Nano, value); err == nil {
				clock = t.Format("15:04:05.000")
			}
		case "level":
			level = value
		case "msg":
			message = value
		default:
			if isText && (value == "" || strings.ContainsAny(value, " =\"\n")) {
				value = strconv.Quote(value)
			}
			rest += fmt.Sprintf(" %s=%s", key, value)
		}
	}
	return fmt.Sprintf("%s %-5s %s%s", clock, level, message, rest)
}
