#!/usr/bin/env bash
# Builds the Helm command lines that the end-to-end tests drive: bin/helm4 and bin/helm3. Does nothing when both are there at the pinned versions.
set -euo pipefail
bin=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/bin

build() {
  local name=$1 module=$2 version=$3 stage
  [ "$(cat "$bin/.$name" 2>/dev/null)" = "$version $(go env GOVERSION)" ] && [ -x "$bin/$name" ] && return
  echo "helm: building $module $version"
  mkdir -p "$bin"
  stage=$(mktemp -d "$bin/.helm.XXXXXX")
  trap 'rm -rf "$stage"' RETURN
  GOBIN=$stage CGO_ENABLED=0 go install -trimpath -ldflags '-s -w' "$module/cmd/helm@$version"
  mv -f "$stage/helm" "$bin/$name"
  echo "$version $(go env GOVERSION)" >"$bin/.$name"
}

build helm4 helm.sh/helm/v4 v4.2.4
build helm3 helm.sh/helm/v3 v3.21.4
