# Copyright The Promweave Authors
# SPDX-License-Identifier: Apache-2.0

# Needs Go, make and git. Everything else is a Go module or a pinned go tool.
.DEFAULT_GOAL := help
GO      ?= go
PKGS    ?= ./...
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -X github.com/prometheus/common/version.Version=$(VERSION) \
           -X github.com/prometheus/common/version.Revision=$(shell git rev-parse HEAD 2>/dev/null) \
           -X github.com/prometheus/common/version.Branch=$(shell git rev-parse --abbrev-ref HEAD 2>/dev/null)

.PHONY: help
help: ## This list.
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: build ## Build and start the demo: four stores, live data, things to try.
	./bin/promweave demo

.PHONY: test
test: ## Run all tests that need no other servers.
	$(GO) test -timeout 20m $(PKGS)

.PHONY: race
race: ## The same with the race detector, but for what takes long.
	$(GO) test -race -short -timeout 20m $(PKGS)

.PHONY: integration
integration: build ## Tests against real servers; .ci/run installs those (Debian packages).
	$(GO) test -tags integration -run 'Integration|Real' -count=1 -timeout 20m ./backends/... ./plugins/... ./bins/...

.PHONY: build
build: ## Build bin/promweave and bin/promweave-reloader.
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/promweave ./bins/promweave
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/promweave-reloader ./bins/promweave-reloader

.PHONY: check
check: ## Format, vet, lint, generated code, tidy: what CI checks before it tests.
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$unformatted" ]; then echo "run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet -stdmethods=false -tags integration $(PKGS)
	$(GO) tool staticcheck -tags integration $(PKGS)
	$(GO) run ./sdk/storepb/internal/protogen -check
	$(GO) mod tidy -diff
	$(GO) test .

.PHONY: generate
generate: ## Make the generated code anew.
	$(GO) run ./sdk/storepb/internal/protogen

.PHONY: bench
bench: ## The ratios of the README's benchmark table, measured in one run.
	$(GO) test -run '^$$' -bench 'Ratio' -benchtime 1x -timeout 30m ./bins/promweave/internal/bench

.PHONY: fuzz
fuzz: ## Each fuzz target for FUZZTIME (default 20s).
	@for p in $$($(GO) list $(PKGS)); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p 2>/dev/null | grep '^Fuzz'); do \
	    echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $${FUZZTIME:-20s} -fuzzminimizetime 20x $$p || exit 1; \
	  done; done

.PHONY: clean
clean: ## Remove what was built.
	rm -rf bin
