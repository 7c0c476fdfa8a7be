package controlplane

import (
	"context"
	"os"
	"time"
)

// Enable is the environment variable that enables tests with a control plane. Building the
// control plane takes minutes the first time.
const Enable = "SLUICE_TEST_CLUSTER"

// TB is the part of testing.TB that the control plane uses, so that programs do not import
// testing.
type TB interface {
	Helper()
	Skipf(format string, args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
	Cleanup(func())
	TempDir() string
}

// logger writes lines to a test's log.
type logger struct{ t TB }

func (l logger) Write(text []byte) (int, error) {
	l.t.Logf("%s", text)
	return len(text), nil
}

// ForTest starts a control plane for the duration of a test, on a host of a lab. If host is
// nil, it uses the network of this process. It skips the test unless [Enable] is set.
func ForTest(t TB, host Host) *ControlPlane {
	t.Helper()
	if os.Getenv(Enable) == "" {
		t.Skipf("needs a real API server: run make test-cluster, which builds one")
	}
	programs, err := Build(context.Background(), logger{t})
	if err != nil {
		t.Fatalf("%v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c, err := Start(ctx, Options{Programs: programs, Dir: t.TempDir(), Host: host})
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("%v", err)
		}
	})
	return c
}
