//go:build race

package policy_test

// raceEnabled shortens the long tests: the race detector makes them ten times slower, and
// finds in a few rounds what it would find in all.
const raceEnabled = true
