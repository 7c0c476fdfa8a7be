package lab

import (
	"os"
	"os/exec"
)

// TB is the part of testing.TB that the lab uses. With it, the demo need not import testing.
type TB interface {
	Helper()
	Skipf(format string, args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Cleanup(func())
}

// Require skips the test if a lab is not possible. A lab needs root, and iptables for both
// families.
func Require(t TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("needs root: it makes network namespaces")
	}
	for _, name := range []string{"iptables", "ip6tables"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs %s: install the package iptables", name)
		}
	}
}

// ForTest builds a lab for the duration of a test. Packets arrive in order (see Options.InOrder).
// It skips the test as [Require] does.
func ForTest(t TB, opts Options) *Lab {
	t.Helper()
	Require(t)
	opts.InOrder = true
	l, err := New(opts)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("%v", err)
		}
	})
	return l
}
