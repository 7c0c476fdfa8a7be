package bpf

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf/asm"
)

// stopClock removes every call that reads the clock, and the kernel accepts the changed programs.
func TestStopClock(t *testing.T) {
	spec, err := loadProgram()
	if err != nil {
		t.Fatal(err)
	}
	calls := func() (n int) {
		for _, p := range spec.Programs {
			for _, ins := range p.Instructions {
				if ins.IsBuiltinCall() && ins.Constant == int64(asm.FnKtimeGetNs) {
					n++
				}
			}
		}
		return n
	}
	before := calls()
	if stopClock(spec); before == 0 || calls() > 0 {
		t.Errorf("%d calls before, %d after", before, calls())
	}
	if os.Geteuid() != 0 {
		t.Skip("loading the programs needs root")
	}
	c := &Cache{opts: Options{Unattended: time.Nanosecond}, prefixes: newPrefixTable()}
	if err := c.loadPrograms(true); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.Attend(), c.objs.Close()); err != nil {
		t.Error(err)
	}
}
