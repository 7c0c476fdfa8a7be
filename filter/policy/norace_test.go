//go:build !race

package policy_test

// raceEnabled makes the long tests shorter.
const raceEnabled = false
