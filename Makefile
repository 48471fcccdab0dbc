# Every habit of this repository in one line each: make help.

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
.DEFAULT_GOAL := help

GO ?= go
BIN := bin/sallyport
GOFILES = $(shell git ls-files --cached --others --exclude-standard '*.go')
# The product and its unit tests; the black-box tests in ./integration need the built binary and the tools.
UNIT = $(shell $(GO) list ./... | grep -v '/integration')
HAVE_CC = $(shell command -v $$($(GO) env CC) >/dev/null 2>&1 && echo yes)
RACE = $(if $(HAVE_CC),-race)
CONSUL ?=
FUZZTIME ?= 20s
RUN ?=
BENCH ?=
SOAK ?= 10m
# What owns sockets: its unit tests run with io_uring, and without.
SOCKETS = ./sidecar/conn ./sidecar/upstream ./sidecar/listener
# What is run a second time against a binary with the race detector, and there without io_uring.
RACY := TestSameAnswersAsEnvoy|TestHTTP2Conformance

.PHONY: help build check test lint unit integration test-k8s bench soak pgo demo fmt fuzz tools generate golden clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## bin/sallyport, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN) .

check: build ## what to run before each commit: build, vet, unit tests (under two minutes once built)
	$(GO) vet ./...
	$(GO) test $(UNIT)

test: lint unit integration ## everything that CI runs: lint, unit tests with -race, integration tests (Kubernetes: once make test-k8s was run)
	@if [ "$$CI" = true ] || [ -x .tools/bin/kube-apiserver ]; then $(MAKE) --no-print-directory test-k8s; \
		else echo "NOT RUN: integration/kubernetes: make test-k8s builds the API server for it, in three minutes"; fi

lint: ## gofmt, vet, staticcheck
	@unformatted=$$(gofmt -l $(GOFILES)); if [ -n "$$unformatted" ]; then \
		echo "not formatted, run make fmt:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

unit: build ## unit tests with the assertions of sidecar/invariants, and with the race detector where there is a C compiler
	@[ -n "$(HAVE_CC)" ] || echo "race detector: not used: no C compiler (Debian: apt-get install gcc); the unit tests run without it"
	$(if $(HAVE_CC),CGO_ENABLED=1) $(GO) test $(RACE) -tags invariants $(UNIT)
	SALLYPORT_IO_URING=off $(if $(HAVE_CC),CGO_ENABLED=1) $(GO) test $(RACE) -tags invariants $(SOCKETS)

# Run inside the folder, so that go test shows the summary of what was not run. RUN=regexp picks tests.
integration: build tools ## black-box tests of the binary with real Envoy, Consul, h2spec (RUN=regexp for some)
	$(if $(RUN),,cd integration/harness && $(GO) test -count=1)
	$(if $(RUN),,cd integration/bench && $(GO) test -count=1 ./...)
	cd integration && $(GO) test -count=1 -timeout 25m $(if $(RUN),-run '$(RUN)')
	$(if $(RUN),,$(if $(HAVE_CC),cd integration && SALLYPORT_RACE=1 SALLYPORT_IO_URING=off $(GO) test -count=1 -timeout 10m -run '$(RACY)'))

test-k8s: build ## the admission webhook, the installation and attestation with a real Kubernetes API server (RUN=regexp for some)
	@integration/tools/install.sh etcd kube-apiserver
	cd integration/kubernetes && $(GO) test -count=1 -timeout 10m $(if $(RUN),-run '$(RUN)')

# docs/benchmarks.md says what the figures mean, and how to have more rounds and seconds than here.
bench: build ## benchmarks of the parts, then CPU per request beside Envoy, HAProxy and nginx (BENCH=regexp for some)
	$(GO) test -run '^$$' -bench '$(or $(BENCH),.)' -benchmem $(UNIT)
	$(GO) run ./integration/bench -rounds 1 -seconds 1.5 $(if $(BENCH),-only '$(BENCH)')

soak: build ## full load for SOAK (10m); fails unless memory, descriptors and goroutines are flat
	$(GO) run ./integration/bench soak -for $(SOAK)

pgo: build ## default.pgo, a CPU profile of the data path under load, which go build uses
	$(GO) run ./integration/bench pgo -o default.pgo

demo: build ## the whole picture on this machine; CONSUL=1 with a real Consul, TRANSPARENT=1 with services unaware of it (root)
	$(if $(CONSUL),integration/tools/install.sh consul)
	$(if $(CONSUL),CONSUL=$(CURDIR)/.tools/bin/consul) $(BIN) demo $(if $(CONSUL),--consul) $(if $(TRANSPARENT),--transparent)

fmt: ## gofmt, in place
	gofmt -w $(GOFILES)

fuzz: ## each fuzz target for FUZZTIME (20s)
	@for pkg in $$(grep -lE '^func Fuzz' $$(git ls-files --cached --others --exclude-standard '*_test.go') | xargs -r -n 1 dirname | sort -u); do \
		for target in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' $$pkg/*_test.go | cut -c6-); do \
			echo "./$$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) ./$$pkg || exit 1; \
		done; \
	done

tools: ## Envoy, Consul and h2spec for the integration tests, into .tools (cached)
	@integration/tools/install.sh

generate: ## compile the BPF programs (Debian: apt-get install clang llvm libbpf-dev); the result is committed
	$(GO) generate ./sidecar/accelerate

golden: ## rewrite the golden files; read the diff before committing it
	@for pkg in $$(grep -lE 'flag\.Bool\("update"' $$(git ls-files --cached --others --exclude-standard '*_test.go') | xargs -r -n 1 dirname | sort -u); do \
		$(GO) test ./$$pkg -update || exit 1; \
	done
	@git status --short -- '*testdata*'

clean: ## remove what was built; .tools stays (rm -rf .tools for that too)
	rm -rf bin integration/.state
