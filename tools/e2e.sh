#!/usr/bin/env bash
# Runs the end-to-end tests.
#
#   tools/e2e.sh local        all of them, on clusters of this machine: real containers and real network namespaces, as root
#   tools/e2e.sh kind         the scenarios, on a control plane that helm installs on a new cluster of kind's
#   tools/e2e.sh kubeconfig   the same on the cluster of KUBECONFIG, whose nodes pull the images from PUSH, a registry's HOST/PREFIX
#   tools/e2e.sh --check CLUSTER   only what such a run needs beforehand
#
# VERSION is that of dist/images and dist/charts, which the last two install.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { printf 'e2e: %s\n' "$*" >&2; exit 1; }

check() {
  case $1 in
    local) [ "$(id -u)" = 0 ] || fail "the end-to-end tests make containers and network namespaces: run them as root" ;;
    kind) tools/kind.sh --check ;;
    kubeconfig)
      [ -n "${KUBECONFIG:-}" ] && [ -r "$KUBECONFIG" ] || fail "CLUSTER=kubeconfig: KUBECONFIG must name a cluster's file"
      [ -n "${PUSH:-}" ] || fail "CLUSTER=kubeconfig: PUSH must name the registry, HOST/PREFIX, from which the cluster's nodes pull images"
      ;;
    *) fail "CLUSTER is local, kind or kubeconfig, not $1" ;;
  esac
}

if [ "${1:-}" = --check ]; then
  check "${2:-local}"
  exit
fi
cluster=${1:-local}
check "$cluster"
case $cluster in
  kind)
    tools/kind.sh
    export PATH=$PWD/bin:$PATH
    exec go test -tags e2e -count=1 -v -timeout 60m -run '^TestKind$' ./e2e/kubernetes
    ;;
  kubeconfig) exec go test -tags e2e -count=1 -v -timeout 60m -run '^TestKubeconfig$' ./e2e/kubernetes ;;
esac

# Packages run one after the other: they share the machine. Those that have tests of this tier are found by their build tag; e2e/kubernetes needs a cluster that is not of this machine.
packages=$(grep -rlE '^//go:build e2e' --include='*_test.go' pkg services cli e2e | xargs -n1 dirname | sort -u | grep -vx e2e/kubernetes | sed 's|^|./|')
# deploy has a module of its own: what reads Dockerfiles is no part of the services.
(cd deploy && GOWORK=off go test -tags e2e -count=1 ./...)
exec go test -tags e2e -p 1 -count=1 -timeout 40m $packages
