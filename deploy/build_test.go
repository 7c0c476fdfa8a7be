package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every target of the Makefile that builds sluice sets the version. Without this, a build for a demo or
// a benchmark would replace bin/sluice by a program that does not know its version.
func TestBuildsHaveTheVersion(t *testing.T) {
	text, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	builds := regexp.MustCompile(`(?m)^\t.*go build .*\./cmd/sluice\b.*$`).FindAllString(string(text), -1)
	if len(builds) < 4 {
		t.Fatalf("found only %d builds in the Makefile", len(builds))
	}
	for _, line := range builds {
		if !strings.Contains(line, "$(STAMP)") {
			t.Errorf("no version: %s", line)
		}
	}
	if !strings.Contains(string(text), "STAMP = -X main.release=$(VERSION)") {
		t.Error("STAMP does not set the version")
	}
}

// make finds a version that is valid for a release, also in a repository without a tag, in a repository
// of another user, and without a repository.
func TestMakeKnowsTheVersion(t *testing.T) {
	if _, err := exec.LookPath("make"); err != nil {
		t.Skip("needs make")
	}
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("needs git")
	}
	dir := t.TempDir()
	makefile, err := filepath.Abs("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	in := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		// Ignore a repository above the directory, the user's settings of git, and the version that
		// make passes if make runs this test.
		cmd.Env = []string{
			"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_CEILING_DIRECTORIES=" + filepath.Dir(dir),
			"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.org", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.org",
		}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	version := func() string {
		t.Helper()
		v := regexp.MustCompile(`-version '([^']*)'`).FindStringSubmatch(in("make", "-n", "-f", makefile, "release"))
		if v == nil {
			t.Fatal("make release has no -version")
		}
		return v[1]
	}
	if got := version(); got != "v0.0.0-dev" {
		t.Errorf("without a repository: %s", got)
	}
	in("git", "init", "-q")
	in("git", "commit", "-q", "--allow-empty", "-m", "first")
	if got := version(); !regexp.MustCompile(`^v0\.0\.0-g[0-9a-f]{7,}$`).MatchString(got) {
		t.Errorf("without a tag: %s", got)
	}
	in("git", "tag", "other")
	in("git", "tag", "v1.2.3")
	if got := version(); got != "v1.2.3" {
		t.Errorf("at a tag: %s", got)
	}
	in("git", "commit", "-q", "--allow-empty", "-m", "second")
	if got := version(); !regexp.MustCompile(`^v1\.2\.3-1-g[0-9a-f]{7,}$`).MatchString(got) {
		t.Errorf("after a tag: %s", got)
	}
	if os.Geteuid() == 0 {
		if err := exec.Command("chown", "-R", "65534:65534", dir).Run(); err != nil {
			t.Fatal(err)
		}
		if got := version(); !strings.HasPrefix(got, "v1.2.3-1-g") {
			t.Errorf("in a repository of another user: %s", got)
		}
	}
}

var (
	dockerArg = regexp.MustCompile(`(?m)^ARG (.*)$`)
	from      = regexp.MustCompile(`(?m)^FROM (?:--platform=\S+ )?(\S+)`)
	use       = regexp.MustCompile(`\$\{?([A-Z_]+)\}?`)
)

// The Dockerfiles can be built without arguments: each argument has a default, or is one that builders
// set; the names of base images need no registry's host; and the files to copy exist. They run the same
// steps as "make image".
func TestDockerfilesBuildAsTheyStand(t *testing.T) {
	for _, path := range []string{"Dockerfile", "bench/Dockerfile"} {
		t.Run(path, func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			// Builders set these arguments (BuildKit, "Automatic platform ARGs in the global scope").
			known := map[string]bool{"BUILDPLATFORM": true}
			for _, m := range dockerArg.FindAllStringSubmatch(string(text), -1) {
				for _, arg := range strings.Fields(m[1]) {
					name, _, has := strings.Cut(arg, "=")
					if !has && name != "TARGETOS" && name != "TARGETARCH" {
						t.Errorf("the argument %s has no default", name)
					}
					known[name] = true
				}
			}
			for line := range strings.Lines(string(text)) {
				if strings.HasPrefix(line, "#") {
					continue
				}
				for _, m := range use.FindAllStringSubmatch(line, -1) {
					if !known[m[1]] {
						t.Errorf("there is no argument %s: %s", m[1], line)
					}
				}
				if copied, is := strings.CutPrefix(line, "COPY "); is && !strings.HasPrefix(copied, "--from") {
					words := strings.Fields(copied)
					for _, source := range words[:len(words)-1] {
						if _, err := os.Stat(filepath.Join("..", source)); err != nil {
							t.Errorf("COPY: %v", err)
						}
					}
				}
			}
			for _, m := range from.FindAllStringSubmatch(string(text), -1) {
				if m[1] != "scratch" && m[1] != "golang:${GO_VERSION}" {
					t.Errorf("the base %s is not an official image of the builder's default registry", m[1])
				}
			}
		})
	}
	text, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`-X main.release=$VERSION`, `ENTRYPOINT ["/usr/bin/sluice"]`, "go run ./deploy/image -sluice"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the Dockerfile lacks %q", want)
		}
	}
}
