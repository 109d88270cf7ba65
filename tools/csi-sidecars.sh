#!/usr/bin/env bash
# Builds Kubernetes' own CSI sidecars, provisioner and attacher, from their modules into bin/csi. `go install` refuses modules with replace directives, so each is built from a copy of its source,
# which is as it was published. Libraries that Dhow uses too are taken in Dhow's versions: they are compiled already.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p bin/csi
own=$(mktemp)
source=$(mktemp -d)
trap 'rm -rf "$own" "$source"' EXIT
go list -m -f '{{with .Version}}{{$.Path}} {{.}}{{end}}' all | sort -u > "$own"
kubernetes=$(sed -n 's/^k8s.io\/api //p' "$own")
# The newest versions whose dependencies the module proxy has.
for sidecar in csi-attacher=github.com/kubernetes-csi/external-attacher/v4@v4.13.0 csi-provisioner=github.com/kubernetes-csi/external-provisioner/v6@v6.3.0; do
  name=${sidecar%%=*} module=${sidecar#*=}
  if [ -x "bin/csi/$name" ] && [ "$(cat "bin/csi/$name.version" 2>/dev/null)" = "$module" ]; then
    continue
  fi
  rm -rf "$source" && mkdir -p "$source"
  dir=$(cd "$source" && GOWORK=off go mod download -json "$module" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
  cp -r "$dir/." "$source" && chmod -R u+w "$source"
  # A module's versions: Dhow's where Dhow has it; Kubernetes' staging modules, which are released together, are all of Dhow's.
  required=$(GOWORK=off go mod edit -json "$source/go.mod" | sed -nE 's/^\t\t\t"Path": "(.*)",$/\1/p' | sort -u)
  versions=$(join -a 1 <(echo "$required") "$own" | awk -v k8s="$kubernetes" '/^k8s\.io\/(api|apimachinery|apiserver|client-go|component-base|component-helpers|csi-translation-lib|kms|streaming)( |$)/ { $2 = k8s } NF == 2 { print "-require=" $1 "@" $2 }')
  replaced=$(sed -nE 's/^(replace |\t)([^ ]+) => .*/-dropreplace=\2/p' "$source/go.mod")
  (cd "$source" && GOWORK=off go mod edit $replaced $versions && GOWORK=off CGO_ENABLED=0 go build -trimpath -mod=mod -ldflags '-s -w' -o built "./cmd/$name")
  mv "$source/built" "bin/csi/$name"
  echo "$module" > "bin/csi/$name.version"
done
