package main

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// A release has all files, and each has the version. The programs have no symbols. A second release
// gives the same bytes. The test takes minutes and needs Debian's packages, so only "make test-release"
// runs it.
func TestWholeRelease(t *testing.T) {
	if os.Getenv("SLUICE_TEST_RELEASE") == "" {
		t.Skip("needs minutes and Debian's packages: run make test-release")
	}
	t.Chdir("../..")
	var checksums []string
	var o options
	for range 2 {
		o = testOptions(t)
		if err := release(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		checksums = append(checksums, string(read(t, filepath.Join(o.out, "SHA256SUMS"))))
	}
	if checksums[0] != checksums[1] {
		t.Errorf("two releases differ:\n%s\n%s", checksums[0], checksums[1])
	}
	var names []string
	for line := range strings.Lines(checksums[0]) {
		names = append(names, strings.Fields(line)[1])
	}
	const want = "sluice-1.2.3-rc.1.tgz sluice-image_v1.2.3-rc.1.tar sluice_v1.2.3-rc.1.cdx.json sluice_v1.2.3-rc.1.krew.yaml sluice_v1.2.3-rc.1_darwin_amd64.tar.gz sluice_v1.2.3-rc.1_darwin_arm64.tar.gz " +
		"sluice_v1.2.3-rc.1_linux_amd64.tar.gz sluice_v1.2.3-rc.1_linux_arm64.tar.gz sluice_v1.2.3-rc.1_windows_amd64.zip"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("the release has\n%s, want\n%s", got, want)
	}
	self := filepath.Join(o.work, "linux_"+runtime.GOARCH, "sluice")
	out, err := exec.Command(self, "version").Output()
	if err != nil || !strings.HasPrefix(string(out), "sluice v1.2.3-rc.1 go1.") {
		t.Errorf("the program prints %q, %v", out, err)
	}
	f, err := elf.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Section(".symtab") != nil {
		t.Error("the program has symbols")
	}
	bill := string(read(t, filepath.Join(o.out, "sluice_v1.2.3-rc.1.cdx.json")))
	for _, want := range []string{"pkg:golang/github.com/cilium/ebpf@", "pkg:deb/debian/iptables@", "?arch=arm64", "?arch=amd64"} {
		if !strings.Contains(bill, want) {
			t.Errorf("the bill of materials lacks %s", want)
		}
	}
}
