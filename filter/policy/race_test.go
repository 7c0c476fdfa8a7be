//go:build race

package policy_test

// raceEnabled shortens the long tests: the race detector makes them ten times slower, and a
// few rounds are enough for it to find any race.
const raceEnabled = true
