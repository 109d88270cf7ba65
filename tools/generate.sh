#!/bin/sh
# Lints proto/, checks its format and that it breaks nobody, and generates gen/go from it. Works offline once the modules of tools/go.mod are
# in the module cache.
#
#   tools/generate.sh            regenerate gen/go
#   tools/generate.sh --check    change nothing; fail when gen/go is not what proto/ generates
#   tools/generate.sh --format   rewrite proto/ in buf's format, then regenerate
#   tools/generate.sh --release  keep today's schema as the one that later changes are compared with
set -eu

mode=${1:-generate}
case $mode in
generate | --check | --format | --release) ;;
*)
	echo "tools/generate.sh: unknown argument $mode: give --check, --format, --release or nothing" >&2
	exit 2
	;;
esac

cd "$(dirname "$0")/.."
released=proto/released.binpb

# The generators come from tools/go.mod, which is outside go.work so that their dependencies are not ours. The stamp saves relinking them.
stamp=$(cat tools/go.mod tools/go.sum | sha256sum)
if [ "$(cat bin/.generators 2>/dev/null || true)" != "$stamp" ]; then
	echo "building buf, protoc-gen-go and protoc-gen-go-grpc into bin/"
	mkdir -p bin
	(cd tools && GOWORK=off GOFLAGS=-mod=readonly go build -trimpath -o ../bin/ tool)
	echo "$stamp" >bin/.generators
fi

[ "$mode" != --format ] || bin/buf format -w
bin/buf lint
if ! bin/buf format --diff --exit-code; then
	echo "tools/generate.sh: proto/ is not in buf's format: run tools/generate.sh --format" >&2
	exit 1
fi
if ! bin/buf breaking --against "$released"; then
	echo "tools/generate.sh: proto/ breaks users of the released schema ($released)" >&2
	exit 1
fi

# Generating beside the tree leaves no moment without gen/go, and no file of a definition that is gone.
next=$(mktemp -d "$PWD/gen/.next.XXXXXX")
trap 'rm -rf "$next"' EXIT
bin/buf generate --output "$next"
if [ "$mode" = --check ]; then
	if ! diff -r -q "$next/gen/go/dhow" gen/go/dhow; then
		echo "tools/generate.sh: gen/go is not what proto/ generates: run tools/generate.sh and commit the result" >&2
		exit 1
	fi
	exit 0
fi
mv gen/go/dhow "$next/old"
mv "$next/gen/go/dhow" gen/go/dhow
[ "$mode" != --release ] || bin/buf build --exclude-source-info --output "$released"
