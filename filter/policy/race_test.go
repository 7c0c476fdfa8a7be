//go:build race

package policy_test

// raceEnabled makes the long tests shorter: the race detector slows them down
// tenfold, and finds in them no more than in a few rounds.
const raceEnabled = true
