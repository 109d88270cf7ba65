#!/usr/bin/env bash
# Builds Kubernetes' own CSI sidecars, provisioner and attacher, from their modules into bin/csi. `go install` refuses modules with replace directives, so each is built from a copy of its source.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p bin/csi
# The newest versions whose dependencies the module proxy has.
for sidecar in csi-attacher=github.com/kubernetes-csi/external-attacher/v4@v4.13.0 csi-provisioner=github.com/kubernetes-csi/external-provisioner/v6@v6.3.0; do
  name=${sidecar%%=*} module=${sidecar#*=}
  if [ -x "bin/csi/$name" ] && [ "$(cat "bin/csi/$name.version" 2>/dev/null)" = "$module" ]; then
    continue
  fi
  source=$(mktemp -d)
  trap 'rm -rf "$source"' EXIT
  dir=$(cd "$source" && GOWORK=off go mod download -json "$module" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
  cp -r "$dir/." "$source" && chmod -R u+w "$source"
  (cd "$source" && GOWORK=off CGO_ENABLED=0 go build -trimpath -mod=mod -ldflags '-s -w' -o built "./cmd/$name")
  mv "$source/built" "bin/csi/$name"
  echo "$module" > "bin/csi/$name.version"
  rm -rf "$source"
done
