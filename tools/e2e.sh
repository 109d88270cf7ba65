#!/usr/bin/env bash
# Runs the end-to-end tests: real containers and real network namespaces, as root. Packages run one after the other: they share the machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "$(id -u)" != 0 ]; then
  echo "e2e: the end-to-end tests make containers and network namespaces: run them as root" >&2
  exit 1
fi
# The packages that have tests of this tier, found by their build tag.
packages=$(grep -rlE '^//go:build e2e' --include='*_test.go' pkg services cli e2e | xargs -n1 dirname | sort -u | sed 's|^|./|')
# deploy has a module of its own: what reads Dockerfiles is no part of the services.
(cd deploy && GOWORK=off go test -tags e2e -count=1 ./...)
exec go test -tags e2e -p 1 -count=1 -timeout 40m $packages
