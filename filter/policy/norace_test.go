//go:build !race

package policy_test

// raceEnabled shortens the long tests.
const raceEnabled = false
