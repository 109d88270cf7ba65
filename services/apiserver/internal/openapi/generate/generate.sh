#!/bin/sh
# Writes ../definitions.*.json.gz: the schemas of every kind's Go type, in OpenAPI 2.0 and 3.0, as kube-openapi's generator reads them from the
# source of k8s.io/api: descriptions, defaults, enums, list types, patch strategies. Run it after a change of k8s.io/api's version or of the groups
# in packages; `go generate ./apiserver/internal/openapi` does.
set -eu
cd "$(dirname "$0")"
version=$(GOWORK=off go list -m -f '{{.Version}}' k8s.io/kube-openapi)
work=definitions
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"
GOWORK=off go run "k8s.io/kube-openapi/cmd/openapi-gen@$version" --output-dir "$work" --output-pkg dhow.dev/services/apiserver/internal/openapi/generate/definitions \
	--go-header-file /dev/null --report-filename /dev/null $(cat packages)
go run -tags openapi . ..
