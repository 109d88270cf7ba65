# Dhow's one entrance: `make help` lists what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

MODULES := gen/go pkg services cli e2e bench examples
BINARIES := dhow dhow-store dhow-apiserver dhow-scheduler dhow-controller-manager dhow-node-agent
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# kubectl says the Kubernetes version that its module is of: k8s.io/kubectl v0.36.3 is kubectl v1.36.3.
KUBECTL_VERSION = $(shell cd cli && go list -m -f '{{.Version}}' k8s.io/kubectl | sed 's/^v0/v1/')
LDFLAGS = -s -w -X dhow.dev/pkg/version.Version=$(VERSION) -X k8s.io/component-base/version.gitVersion=$(KUBECTL_VERSION) \
	-X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$(word 2,$(subst ., ,$(KUBECTL_VERSION)))

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: setup
setup: ## install what Dhow needs on this machine (says what)
	@tools/setup.sh

.PHONY: build
build: ## build all binaries into bin/
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cli/cmd/... $(wildcard ./services/*/cmd/*) ./e2e/cmd/... ./bench/cmd/... ./pkg/image/cmd/...

.PHONY: images
images: setup ## container images of every service into dist/images; PLATFORMS, PUSH and PLAIN_HTTP: tools/images.sh
	@VERSION='$(VERSION)' LDFLAGS='$(LDFLAGS)' REVISION=$$(git rev-parse HEAD) CREATED=$$(git log -1 --format=%cI) tools/images.sh

.PHONY: generate
generate: ## generate Go code from proto/
	@tools/generate.sh

.PHONY: lint
lint: ## formatting, vet, the repository's own rules, schema lint and breaking changes, generated code up to date
	@test -z "$$(gofmt -l $(filter-out gen/go,$(MODULES)) tools | tee -a /dev/stderr)"
	@for m in $(filter-out gen/go,$(MODULES)); do (cd $$m && go vet -tags e2e ./...); done
	@cd deploy && test -z "$$(gofmt -l . | tee -a /dev/stderr)" && GOWORK=off go vet -tags e2e ./...
	@cd tools && GOWORK=off go test ./rules && GOWORK=off go build -o ../bin/rules ./rules
	@bin/rules
	@tools/generate.sh --check

.PHONY: test-unit
test-unit: ## unit and integration tests (no root)
	@for m in $(MODULES); do (cd $$m && go test -timeout 20m ./...); done
	@cd deploy && GOWORK=off go test ./...
	@cd tools/runtime && GOWORK=off go test ./...

.PHONY: test-race
test-race: ## the concurrent packages under the race detector
	@go test -race -timeout 30m $$(tools/race-packages.sh)

# The cluster of the end-to-end tests: local, kind or kubeconfig (docs/testing.md).
CLUSTER ?= local

.PHONY: e2e-check
e2e-check:
	@tools/e2e.sh --check $(CLUSTER)

.PHONY: e2e
e2e: e2e-check setup build helm $(if $(filter local,$(CLUSTER)),,images charts) ## end-to-end tests: real containers, real network namespaces (root); CLUSTER=kind or kubeconfig: docs/testing.md
	@VERSION='$(VERSION)' tools/e2e.sh $(CLUSTER)

.PHONY: helm
helm: ## build the Helm command lines that the end-to-end tests drive
	@tools/helm.sh

.PHONY: charts
charts: helm ## Helm charts into dist/charts
	@VERSION='$(VERSION)' tools/charts.sh

.PHONY: test
test: setup lint test-unit test-race e2e ## every test tier

.PHONY: demo
demo: setup build ## the whole story on this machine, each step asserted (root); KEEP=1 leaves the cluster up
	@bin/dhow-demo $(if $(KEEP),--keep)

.PHONY: run-separate
run-separate: setup build ## the five services as five processes over mTLS, two API servers (root)
	@bin/dhow up --separate --nodes 3

.PHONY: bench
bench: ## benchmarks
	@go test -run '^$$' -bench . -benchmem ./pkg/... ./services/...

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist
