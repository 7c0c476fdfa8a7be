package near

import "strings"

// Kind puts in words what the JSON decoder calls the kind of a value, for people who
// write YAML.
func Kind(value string) string {
	switch value {
	case "array":
		return "a list"
	case "object":
		return "an object"
	case "bool":
		return "true or false (as YAML also reads yes, no, y and n)"
	}
	return "a " + value
}

// WriteString is the hint where a value of such a kind is and a string is wanted. YAML
// takes text without quotes for a number or a bool if it looks like one.
func WriteString(value string) string {
	if value == "bool" || strings.HasPrefix(value, "number") {
		return "write a string, in quotes"
	}
	return "write a string"
}
