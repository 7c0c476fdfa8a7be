package lab_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/bench/testbed/lab"
)

// leftovers lists what a lab may leave in this process: file descriptors of namespaces and packet
// sockets, threads in other namespaces, and children.
func leftovers(t *testing.T) (found []string) {
	t.Helper()
	ownNS, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"/proc/self/fd/*", "/proc/self/task/*/ns/net"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range paths {
			// An error means that the file was removed after Glob.
			if to, err := os.Readlink(p); err == nil && to != ownNS && (strings.HasPrefix(to, "net:") || strings.HasPrefix(to, "mnt:") || strings.HasPrefix(to, "socket:")) {
				found = append(found, p+" -> "+to)
			}
		}
	}
	children, err := os.ReadFile("/proc/thread-self/children")
	if err != nil {
		t.Fatal(err)
	}
	if len(children) > 0 {
		found = append(found, "children "+string(children))
	}
	return found
}

// await waits until a condition holds.
func await(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(attemptTimeout); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timeout of %v while waiting for: %s", attemptTimeout, what)
		}
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	lab.Require(t)
	before := leftovers(t)
	named := list(t, "/run/netns")
	l, err := lab.New(lab.Options{Nodes: 2})
	if err != nil {
		t.Fatal(err)
	}
	web, db := addPod(t, l.Nodes[0], "web"), addPod(t, l.Nodes[1], "db")
	serve(t, db, 80)
	sleep := exec.Command("sleep", "1000")
	if err := web.Start(sleep); err != nil {
		t.Fatal(err)
	}
	open, err := web.DialTCP(t.Context(), addrPort(db.IPv6, 80))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := web.Sniff(); err != nil {
		t.Fatal(err)
	}
	if err := web.Send([]byte{0x45}); err != nil {
		t.Fatal(err)
	}
	if len(leftovers(t)) == len(before) {
		t.Fatal("the test does not see the lab's leftovers")
	}

	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := sleep.Wait(); err == nil || sleep.ProcessState.Sys().(interface{ Signal() unix.Signal }) == nil {
		t.Errorf("the process in the pod was not killed: %v", err)
	}
	if _, err := io.ReadAll(open); err != nil {
		t.Errorf("the server did not close its connection: %v", err)
	}
	if err := open.Close(); err != nil {
		t.Error(err)
	}
	// Threads end a moment after their goroutines.
	await(t, "nothing is left behind", func() bool { return len(leftovers(t)) <= len(before) })
	if after := list(t, "/run/netns"); !slices.Equal(after, named) {
		t.Errorf("named namespaces: %v, before %v", after, named)
	}
	if err := l.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	if err := web.Start(exec.Command("true")); err == nil {
		t.Error("a closed host starts processes")
	}
	if err := db.Serve("tcp", 81); err == nil {
		t.Error("a closed host serves")
	}
}

func list(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestKilledLabLeavesNothing kills a process that has built a lab, and checks that the process
// in the lab's pod dies too. Only these two keep the namespaces alive.
func TestKilledLabLeavesNothing(t *testing.T) {
	lab.Require(t)
	if os.Getenv("LAB_TO_BE_KILLED") != "" {
		l := lab.ForTest(t, lab.Options{})
		sleep := exec.Command("sleep", "1000")
		if err := addPod(t, l.Nodes[0], "web").Start(sleep); err != nil {
			t.Fatal(err)
		}
		fmt.Println("pid", sleep.Process.Pid)
		_ = sleep.Wait()
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledLabLeavesNothing$")
	cmd.Env = append(os.Environ(), "LAB_TO_BE_KILLED=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	pid, convErr := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, "pid ")))
	if err != nil || convErr != nil {
		t.Fatalf("the lab's process printed %q: %v", line, err)
	}
	if err := unix.Kill(pid, 0); err != nil {
		t.Fatalf("process %d: %v", pid, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	await(t, "the pod's process is gone", func() bool { return !alive(pid) })
}

// alive reports whether a process runs. A zombie does not run.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(state, "Z")
}

func TestProcesses(t *testing.T) {
	l := lab.ForTest(t, lab.Options{})
	web := addPod(t, l.Nodes[0], "web")
	out, err := web.Output(exec.Command("cat", "/proc/net/fib_trie"))
	if err != nil || !strings.Contains(out, web.IPv4.String()) {
		t.Errorf("the process does not see the pod's address: %v\n%s", err, out)
	}
	if err := web.Run("sh", "-c", "echo no such luck >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "no such luck") {
		t.Errorf("the error does not contain the command's output: %v", err)
	}
	if err := web.Start(exec.Command("/no/such/file")); err == nil {
		t.Error("a command that does not exist starts")
	}
	if err := web.Do(func() error { return unix.EBADF }); err == nil || !strings.Contains(err.Error(), "web") {
		t.Errorf("the error does not name the host: %v", err)
	}
	// Close does not fail because of a process that has already ended.
	cmd := exec.Command("true")
	if err := web.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

// TestManyThreads calls Do so often that the main thread is likely to run it, too. The main
// thread must not stay in the namespace.
func TestManyThreads(t *testing.T) {
	l := lab.ForTest(t, lab.Options{})
	web := addPod(t, l.Nodes[0], "web")
	ownNS, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for range 500 {
		if err := web.Do(func() error {
			if unix.Gettid() == unix.Getpid() {
				t.Error("the main thread is in the namespace")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if now, err := os.Readlink("/proc/self/ns/net"); err != nil || now != ownNS {
		t.Errorf("the main thread is in %s, before in %s: %v", now, ownNS, err)
	}
}
