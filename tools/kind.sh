#!/usr/bin/env bash
# What `make e2e CLUSTER=kind` needs: Docker, the image of kind's nodes, and kind, which is built into bin/. e2e/kind says which versions.
#
#   tools/kind.sh           fails with a line that says what is missing, and builds kind when it is not there at its version
#   tools/kind.sh --check   does not build
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
version=$(cat e2e/kind/version)
image=$(cat e2e/kind/node-image)

fail() { printf 'kind: %s\n' "$*" >&2; exit 1; }

command -v docker >/dev/null || fail "Docker is missing: kind's nodes are its containers"
docker info >/dev/null 2>&1 || fail "Docker does not answer: \`docker info\` says why"
docker image inspect "$image" >/dev/null 2>&1 || docker pull --quiet "$image" >/dev/null 2>&1 ||
  fail "the node image $image is not here, and cannot be pulled: \`docker pull\` says why"
[ "${1:-}" = --check ] && exit

[ "$(cat bin/.kind 2>/dev/null)" = "$version $(go env GOVERSION)" ] && [ -x bin/kind ] && exit
echo "kind: building sigs.k8s.io/kind $version"
mkdir -p bin
stage=$(mktemp -d bin/.stage.XXXXXX)
trap 'rm -rf "$stage"' EXIT
GOBIN=$PWD/$stage CGO_ENABLED=0 go install -trimpath "sigs.k8s.io/kind@$version"
mv -f "$stage/kind" bin/kind
echo "$version $(go env GOVERSION)" >bin/.kind
