# Without a target, make prints the list of targets.
#
# demo and test install the packages that the machine lacks (.ci/setup), and report them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# iptables is in sbin, which is not in every user's PATH. /usr/local/go/bin, where Go's
# archive is usually unpacked, may be missing under sudo.
export PATH := $(PATH):/usr/sbin:/sbin:/usr/local/go/bin

# A fixed version, so that the linters report the same everywhere.
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

HELM := helm.sh/helm/v3/cmd/helm@v3.20.0
# Helm's own build sets the version of Kubernetes that "helm template" and "helm lint" assume.
# Without these flags it is 1.20, which the chart refuses.
HELM_FLAGS := $(foreach package,chartutil lint/rules,-X helm.sh/helm/v3/pkg/$(package).k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/$(package).k8sVersionMinor=33)
KUSTOMIZE := sigs.k8s.io/kustomize/kustomize/v5@v5.8.0

FUZZTIME ?= 60s
FRAMES ?= 1000000
SEED ?= 1
IMAGE ?= localhost/sluice:dev
# The version of everything that is built here: the last tag or, before the first one, v0.0.0-g with the
# commit. git refuses to read a clone of another user, which is usual under sudo, unless it is told to.
DESCRIBE := git -c safe.directory='$(CURDIR)' describe --dirty --match 'v[0-9]*'
VERSION ?= $(or $(shell $(DESCRIBE) --tags 2>/dev/null),$(addprefix v0.0.0-g,$(shell $(DESCRIBE) --always 2>/dev/null)),v0.0.0-dev)
STAMP = -X main.release=$(VERSION)
REPOSITORY ?= localhost/sluice
BENCH ?= .
DEMO ?=

.PHONY: help
help: ## print this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1\t\2/p' Makefile | \
		while IFS=$$'\t' read -r name what; do printf '  make %-18s %s\n' "$$name" "$$what"; done

.PHONY: demo
demo: ## show policies at work on real packets, in network namespaces (as root, under a minute; DEMO=--help: options)
	@.ci/setup demo
	@go build -trimpath -buildvcs=false -ldflags='$(STAMP)' -o bin/ ./cmd/sluice ./bench/demo
	@bin/demo --sluice bin/sluice $(DEMO)

.PHONY: test
test: ## run all tests (as root, those on real packets too)
	@.ci/setup test
	@.ci/test

.PHONY: test-cluster
test-cluster: ## test the agent with a real API server, and print its latencies (the first run builds one: 5 minutes)
	@.ci/setup test
	PATH='$(CURDIR)/.cache/tools':"$$PATH" SLUICE_TEST_CLUSTER=1 go test -buildvcs=false -count=1 -timeout=30m -p=1 -v -run '^TestCluster' ./watch/kube ./cmd/sluice ./deploy

.PHONY: test-hubble
test-hubble: ## test Hubble's API with the real hubble and hubble-relay, as root (the first run builds them: 5 minutes)
	@.ci/setup test
	SLUICE_TEST_HUBBLE=1 go test -buildvcs=false -count=1 -timeout=30m -v -run '^TestHubble' ./cmd/sluice

.PHONY: test-alerts
test-alerts: ## test the alerts with the real promtool: each fires when it should (the first run builds it: 2 minutes)
	SLUICE_TEST_ALERTS=1 go test -buildvcs=false -count=1 -timeout=30m -v -run '^TestAlerts' ./deploy

# The pages in Chromium: a module of its own, so that no build of Sluice needs what drives a browser.
BROWSER = bench/testbed/browser
PICTURES = .github/pictures
# The pictures show the shop of the tests.
SHOP = -in '$(CURDIR)/cmd/sluice/testdata/shop/repo' -f rendered/production -f platform -f nodes

.PHONY: test-browser
test-browser: ## test the pages of matrix and report in Chromium (as root, it installs Chromium from Debian: minutes)
	@.ci/setup browser
	@go build -trimpath -buildvcs=false -ldflags='$(STAMP)' -o bin/ ./cmd/sluice
	cd $(BROWSER) && go vet . && SLUICE='$(CURDIR)/bin/sluice' go test -count=1 -timeout=1h -v .

.PHONY: pictures
pictures: ## take the pictures of README.md in Chromium (as test-browser), into .github/pictures
	@.ci/setup pictures
	@go build -trimpath -buildvcs=false -ldflags='$(STAMP)' -o bin/ ./cmd/sluice
	@mkdir -p $(PICTURES)
	cd $(BROWSER) && go run . -sluice '$(CURDIR)/bin/sluice' $(SHOP) -flows flows/flows.jsonl -o '$(CURDIR)/$(PICTURES)'

# uPlot draws the lines in Grafana, too. Grafana itself is in no package registry that make uses.
UPLOT = uplot@1.6.32

.PHONY: picture-dashboard
picture-dashboard: ## take the pictures of the dashboard, with agents and a real Prometheus under traffic (as root, 5 minutes)
	@.ci/setup pictures
	@.ci/setup demo
	@go build -trimpath -buildvcs=false -ldflags='$(STAMP)' -o bin/ ./cmd/sluice ./bench/testbed/dashboard
	@npm install --silent --no-audit --no-fund --prefix .cache/uplot $(UPLOT)
	@mkdir -p $(PICTURES)
	bin/dashboard -sluice bin/sluice -o bin/dashboard-data.json
	cd $(BROWSER) && go run . -dashboard '$(CURDIR)/bin/dashboard-data.json' -uplot '$(CURDIR)/.cache/uplot/node_modules/uplot' -o '$(CURDIR)/$(PICTURES)'

.PHONY: build
build: ## build bin/sluice
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags='-s -w $(STAMP)' -o bin/sluice ./cmd/sluice

# What make install installs, where, and below which directory.
PROGRAM ?= bin/sluice
PREFIX ?= /usr/local
DESTDIR ?=
BINDIR = $(DESTDIR)$(PREFIX)/bin
SHAREDIR = $(DESTDIR)$(PREFIX)/share
COMPLETIONS = bash-completion/completions/sluice zsh/site-functions/_sluice fish/vendor_completions.d/sluice.fish

.PHONY: install
install: build ## install sluice, the plugin kubectl-sluice and completions below PREFIX (/usr/local)
	install -d '$(BINDIR)' $(patsubst %,'$(SHAREDIR)/%',$(dir $(COMPLETIONS)))
	install -m 755 '$(PROGRAM)' '$(BINDIR)/sluice'
	ln -sf sluice '$(BINDIR)/kubectl-sluice'
	'$(PROGRAM)' completion kubectl > '$(BINDIR)/kubectl_complete-sluice'
	chmod 755 '$(BINDIR)/kubectl_complete-sluice'
	'$(PROGRAM)' completion bash > '$(SHAREDIR)/$(word 1,$(COMPLETIONS))'
	'$(PROGRAM)' completion zsh > '$(SHAREDIR)/$(word 2,$(COMPLETIONS))'
	'$(PROGRAM)' completion fish > '$(SHAREDIR)/$(word 3,$(COMPLETIONS))'

.PHONY: uninstall
uninstall: ## remove what make install has installed below PREFIX
	rm -f '$(BINDIR)/sluice' '$(BINDIR)/kubectl-sluice' '$(BINDIR)/kubectl_complete-sluice' $(patsubst %,'$(SHAREDIR)/%',$(COMPLETIONS))

.PHONY: image
image: ## build bin/sluice-image.tar, an OCI image to load into containerd; without a daemon or a registry
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags='-s -w $(STAMP)' -o bin/image/sluice ./cmd/sluice
	go run ./deploy/image -sluice bin/image/sluice -name '$(IMAGE)' -version '$(VERSION)' -o bin/sluice-image.tar

.PHONY: release
release: ## build bin/release: programs for 5 platforms, image for 2, chart, SBOM and checksums, of VERSION (on Debian; minutes)
	go run ./deploy/release -version '$(VERSION)' -repository '$(REPOSITORY)' -source '$(SOURCE)' -o bin/release

.PHONY: test-release
test-release: ## make a release twice, and check that it is complete and the same (on Debian; many minutes)
	SLUICE_TEST_RELEASE=1 go test -buildvcs=false -count=1 -timeout=1h -v -run '^TestWholeRelease$$' ./deploy/release

.PHONY: check-deploy
check-deploy: ## compare the chart and the base with Helm and kustomize (the first run builds them: minutes)
	GOBIN='$(CURDIR)/.cache/tools' go install -ldflags='$(HELM_FLAGS)' $(HELM)
	GOBIN='$(CURDIR)/.cache/tools' go install $(KUSTOMIZE)
	PATH='$(CURDIR)/.cache/tools':"$$PATH" go test -count 1 ./deploy ./deploy/release

.PHONY: generate
generate: ## compile the programs of the kernel's flow cache and of the guard (Debian: clang, llvm, libbpf-dev)
	BPF2GO_CFLAGS="-idirafter /usr/include/$$(uname -m)-linux-gnu" go generate ./cache/bpf ./filter/guard

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (60s), one after the other
	@grep -rEo --include='*_test.go' '^func Fuzz\w+' cmd filter cache watch bench | \
		while IFS=: read -r file func; do \
			echo "== $${func#func } in $$(dirname "$$file")"; \
			go test -run '^$$' -fuzz "^$${func#func }$$" -fuzztime '$(FUZZTIME)' "./$$(dirname "$$file")"; \
		done

.PHONY: fuzz-frames
fuzz-frames: ## send FRAMES random frames (1000000) of SEED (1) in each layout, as root, and check that only allowed ones arrive
	SLUICE_FUZZ_FRAMES='$(FRAMES)' SLUICE_FUZZ_SEED='$(SEED)' go test -buildvcs=false -count=1 -timeout=6h -v -run '^TestRandomFrames' ./cmd/sluice

.PHONY: bench
bench: ## measure what enforcement costs beside other ways, on real packets (as root; two hours, with BENCHFLAGS=--quick 3 minutes)
	@go build -trimpath -buildvcs=false -ldflags='$(STAMP)' -o bin/ ./cmd/sluice ./bench
	@bin/bench run --sluice bin/sluice --out bin/bench.json --html bin/bench.html $(BENCHFLAGS)

.PHONY: bench-image
bench-image: ## build bin/bench-image.tar, the image of deploy/bench, as make image does
	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o bin/image/bench ./bench
	go run ./deploy/image -sluice bin/image/bench -name localhost/sluice-bench:dev -version '$(VERSION)' -o bin/bench-image.tar

.PHONY: gobench
gobench: ## run the Go benchmarks that match BENCH (all), one package after the other
	@grep -rlE --include='*_test.go' '^func Benchmark' cmd filter cache watch bench | xargs -n1 dirname | sort -u | \
		while read -r dir; do go test -run '^$$' -bench '$(BENCH)' -benchmem "./$$dir"; done

.PHONY: bench-scale
bench-scale: ## measure what it costs to follow 100,000 pods and 10,000 policies (as root, the memory of the agent too)
	@go build -trimpath -buildvcs=false -ldflags='$(STAMP)' -o bin/ ./cmd/sluice ./bench/scale
	@bin/scale -sluice bin/sluice

.PHONY: bench-curve
bench-curve: ## count the connections of a node that go to user space, over time, in a cluster of 10,000 pods (as root, 2 minutes)
	@go build -trimpath -buildvcs=false -ldflags='$(STAMP)' -o bin/ ./bench/curve
	@bin/curve $(BENCHFLAGS)

.PHONY: lint
lint: ## find probable mistakes in the code (the first run builds golangci-lint: minutes)
	GOFLAGS="$${GOFLAGS:-} -buildvcs=false" go run $(GOLANGCI_LINT) run

.PHONY: clean
clean: ## remove what was built here
	rm -rf bin
