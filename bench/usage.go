package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// usage is the state of the resource counters at one moment. The cost of a load is the
// difference between the states before and after it.
type usage struct {
	agent   time.Duration // CPU time of the agent's process
	machine time.Duration // CPU time of the whole machine
	queued  uint64        // packets that the kernel has put into a queue
	dropped uint64        // packets that found the queue full, or that could not be delivered to a process
	watched watched       // counts of what an observer has printed; zero without an observer
}

// usage reads the counters. Without an agent's process, the agent's CPU time is 0.
func (s *contender) usage() (u usage, err error) {
	if s.pid != 0 {
		if u.agent, err = cpuOf(s.pid); err != nil {
			return u, err
		}
	}
	if u.machine, err = cpuOfAll(); err != nil {
		return u, err
	}
	err = s.node.Do(func() (err error) {
		// Use thread-self, because only this thread is in the node's namespace.
		text, err := os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_queue")
		if err != nil {
			return fmt.Errorf("read the queues' counters: %w", err)
		}
		u.queued, u.dropped = queues(string(text))
		return nil
	})
	return u, err
}

// cpuOf returns the CPU time of a process, including threads that have ended. It reads the
// process's CPU clock, which counts in nanoseconds. /proc/PID/stat counts in hundredths of a
// second, which is too coarse for a short load.
func cpuOf(pid int) (time.Duration, error) {
	const scheduled = 2 // CPUCLOCK_SCHED (posix-timers_types.h): the time for which the process ran
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|scheduled), &ts); err != nil {
		return 0, fmt.Errorf("read the CPU time of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// cpuOfAll returns the time for which the machine's CPUs were not idle. Its resolution is a
// hundredth of a second (proc_stat(5)).
func cpuOfAll() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("read the machine's CPU time: %w", err)
	}
	return busy(string(text)), nil
}

func busy(stat string) time.Duration {
	line, _, _ := strings.Cut(stat, "\n")
	var ticks int64
	// The fields are cpu, user, nice, system, idle, iowait, irq, softirq, steal. Leave out
	// idle, iowait and steal, which is the time that a hypervisor took away.
	for i, f := range strings.Fields(line) {
		if n, err := strconv.ParseInt(f, 10, 64); err == nil && i >= 1 && i <= 7 && i != 4 && i != 5 {
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// queues sums up the queued and dropped packets of all queues. text is the content of
// /proc/net/netfilter/nfnetlink_queue, with a line for each queue. The fields of a line are
// queue, port, waiting, copy mode, copy range, dropped by the queue, dropped by the socket,
// last id, 1.
func queues(text string) (queued, dropped uint64) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 8 {
			continue
		}
		full, _ := strconv.ParseUint(f[5], 10, 64)
		lost, _ := strconv.ParseUint(f[6], 10, 64)
		last, _ := strconv.ParseUint(f[7], 10, 64)
		queued, dropped = queued+last, dropped+full+lost
	}
	return queued, dropped
}

// rss returns the resident set of a process in MiB.
func rss(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read the resident set: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kib); n == 1 {
			return kib / 1024, nil
		}
	}
	return 0, fmt.Errorf("read the resident set: there is none of process %d", pid)
}
