#!/usr/bin/env bash
# Makes the container images of every service and of the command line, without docker: the programs are built for each platform into
# dist/OS_ARCH, and the images from them by the Dockerfiles in deploy/images. The same commit gives the same digests.
#
#   tools/images.sh                              archives in dist/images, for this machine's platform
#   PLATFORMS=linux/amd64,linux/arm64 tools/images.sh
#   PUSH=registry.example.com/dhow tools/images.sh   push instead (PLAIN_HTTP=1: to a registry without TLS)
#   VERSION, REVISION, CREATED                   what the images say of themselves; given by the Makefile
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
platforms=${PLATFORMS:-linux/$(go env GOARCH)}


for platform in ${platforms//,/ }; do
  architecture=${platform#*/}
  dist=dist/${platform/\//_}
  echo "images: building the programs for $platform"
  rm -rf "$dist"
  mkdir -p "$dist/bin"
  # No stamp of the working tree: the same source gives the same bytes wherever it is built.
  CGO_ENABLED=0 GOOS=${platform%/*} GOARCH=$architecture go build -trimpath -buildvcs=false -ldflags "$LDFLAGS" -o "$dist/bin/" \
    ./cli/cmd/... $(printf './services/%s/cmd/... ' store apiserver scheduler controller-manager node-agent)
  chmod 0755 "$dist"/bin/*
  tools/image-runtime.sh "$architecture" "$dist"
done

cd deploy
GOWORK=off go run ./cmd/dhow-images -dockerfiles images -dist ../dist -platforms "$platforms" \
  -version "$VERSION" -revision "$REVISION" -created "$CREATED" ${PUSH:+-push "$PUSH"} ${PLAIN_HTTP:+-plain-http}
