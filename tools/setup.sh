#!/usr/bin/env bash
# Installs what Dhow needs to build, test and run on a Debian machine, builds the bundled container runtime, and unpacks docker for a test.
# Idempotent: it checks each thing first and does nothing when all is present.
#
#   tools/setup.sh             install what is missing
#   tools/setup.sh --list      print what would be installed and change nothing
#   tools/setup.sh --bundle ARCHITECTURE   build the runtime bundle of another architecture, amd64 or arm64, into DHOW_RUNTIME_DIR
#
# DHOW_RUNTIME_DIR says where the runtime bundle goes (default: bin/runtime in this repository).
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
runtime_dir=${DHOW_RUNTIME_DIR:-$repo/bin/runtime}
pins=$repo/tools/runtime
architecture=$(go env GOARCH 2>/dev/null || true)
# Set for another architecture: what its compiler is called, and a folder with its libraries.
cross= sysroot=

# One package a line, then why. Extend this list when a new part of the repository needs a Debian package.
packages="
ca-certificates   certificates for the Go module proxy
gcc               builds runc (cgo) and the pause program
libc6-dev         static C library for runc and the pause program
libseccomp-dev    seccomp profiles in runc
pkg-config        finds libseccomp for cgo
make              runs the Makefile
git               source control and build stamps
curl              calls services in the demo
nftables          the service proxy's packet rules
iproute2          network namespaces and routes, for people who look at them
util-linux        nsenter and setsid, to start processes in a node's network namespace
conntrack         connection tracking entries of removed endpoints
procps            process listings
e2fsprogs         file systems of local volumes that are empty devices
dbus-daemon       the test of a machine that shuts down
busybox-static    the programs inside the example and test images
python3-grpcio    the Python example client
python3-protobuf  the Python example client
protobuf-compiler generates the Python example client from proto/
buildah           shows that an ordinary builder makes the same images of the Dockerfiles
protobuf-compiler-grpc generates the Python example client from proto/
systemd           the first process of the machines in the test of deploy/systemd
docker-compose    the test of deploy/compose; without docker itself, see below
libdevmapper1.02.1 dockerd in the test of deploy/compose
"

# Docker is unpacked into bin/docker and not installed: a package would put it beside or in place of the one that the machine may have, and start a daemon that changes the
# machine's packet rules. The test of deploy/compose runs it on a machine of its own.
docker_packages="docker.io containerd runc"
docker_dir=$repo/bin/docker

# The commands built from the modules pinned in tools/runtime/go.mod: file, build settings, package.
containerd_tags="no_btrfs no_devmapper no_zfs urfave_cli_no_docs osusergo netgo static_build"
containerd_pkg=github.com/containerd/containerd/v2
runc_pkg=github.com/opencontainers/runc
cni_pkg=github.com/containernetworking/plugins
pause_image=dhow.dev/pause:1
bundle_files="containerd containerd-shim-runc-v2 ctr runc bridge host-local loopback portmap pause pause.tar"

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

missing_packages() {
  local name why
  while read -r name why; do
    [ -z "$name" ] && continue
    if [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" != installed ]; then
      printf '%s\t%s\n' "$name" "$why"
    fi
  done <<<"$packages"
}

# The stamp covers everything that decides what the bundle contains, so a changed pin, flag or compiler rebuilds it.
bundle_stamp() {
  {
    go env GOVERSION GOOS
    echo "$architecture"
    cat "$pins/go.mod" "$pins/go.sum" "$pins"/pause/pause.c "$pins"/shim/work.go "${BASH_SOURCE[0]}"
    find "$repo/pkg/image" -name '*.go' ! -name '*_test.go' -print0 | LC_ALL=C sort -z | xargs -0 cat
  } | sha256sum | cut -d' ' -f1
}

bundle_current() {
  local file
  for file in $bundle_files; do
    [ -s "$runtime_dir/$file" ] || return 1
  done
  [ "$(cat "$runtime_dir/.stamp" 2>/dev/null)" = "$(bundle_stamp)" ]
}

pinned() { (cd "$pins" && GOWORK=off GOFLAGS=-mod=readonly go list -m -f '{{.Version}}' "$1"); }

# Without network access `go build` works from the module cache alone: -mod=readonly never looks for newer versions.
build() {
  local cgo=$1 tags=$2 ldflags=$3
  shift 3
  (if [ -n "$cross" ]; then
    # By a name, not by folders: what is told to the compiler is in what it makes, and the same commit has to give the same bytes everywhere.
    export CC=dhow-gcc PATH=$sysroot:$PATH PKG_CONFIG_PATH='' PKG_CONFIG_LIBDIR=$sysroot/usr/lib/${cross%-}/pkgconfig
  fi
  cd "$pins" && GOWORK=off GOFLAGS=-mod=readonly CGO_ENABLED=$cgo GOARCH=$architecture \
    go build -trimpath -buildvcs=false -tags "$tags" -ldflags "-s -w ${cross:+-buildid= }$ldflags" -o "$stage/" "$@")
}

# The shim gives its memory back every 30 s, which is most of what a quiet node with many pods does: docs/decisions/0011-quiet-shims.md. It is built of containerd's source with
# one line of it changed. The folder's name is part of what is built, so it is the same everywhere.
quiet_shim() {
  local source line='for range time.Tick(30 * time.Second) {' file=containerd/pkg/shim/shim.go
  source=$(cd "$pins" && GOWORK=off GOFLAGS=-mod=readonly go list -m -f '{{.Dir}}' $containerd_pkg)
  mkdir "$stage/shim"
  cp "$pins/go.mod" "$pins/go.sum" "$stage/shim/"
  cp -r --no-preserve=mode "$source" "$stage/shim/containerd" # Go keeps it read-only
  cp "$pins/shim/work.go" "$stage/shim/containerd/pkg/shim/work.go"
  cd "$stage/shim"
  [ "$(grep -cF "$line" $file)" = 1 ] || fail "containerd's pkg/shim/shim.go does not give memory back as it used to: see docs/decisions/0011-quiet-shims.md"
  sed -i "s/range time\.Tick(30 \* time\.Second) {/range afterWork(30 * time.Second) {/" $file
  grep -qF 'range afterWork(30 * time.Second) {' $file || fail "containerd's pkg/shim/shim.go was not changed"
  go mod edit -replace "$containerd_pkg=./containerd"
  cd "$repo"
}

install_packages() {
  local names
  names=$(missing_packages | cut -f1 | tr '\n' ' ')
  if [ -z "${names// /}" ]; then
    say "Debian packages: all present"
    return
  fi
  command -v apt-get >/dev/null || fail "these packages are missing and this is not a Debian machine, install them by hand: $names"
  [ "$(id -u)" = 0 ] || fail "these packages are missing, run as root or install them by hand: $names"
  say "installing Debian packages:"
  missing_packages | sed 's/^/setup:   /'
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  # shellcheck disable=SC2086 # a list of names
  apt-get install -y -qq --no-install-recommends $names >/dev/null
  names=$(missing_packages | cut -f1 | tr '\n' ' ')
  [ -z "${names// /}" ] || fail "apt-get reported success, but these packages are still missing: $names"
}

build_bundle() {
  local started version
  command -v go >/dev/null || fail "Go is missing: install Go 1.26 or newer (https://go.dev/dl) and put it on PATH"
  if bundle_current; then
    say "runtime bundle: up to date in $runtime_dir"
    return
  fi
  started=$SECONDS
  mkdir -p "$runtime_dir"
  stage=$(mktemp -d "$runtime_dir/.build.XXXXXX")
  trap 'rm -rf "$stage"' EXIT

  version=$(pinned $containerd_pkg)
  say "building containerd $version, its runc shim and ctr (two to four minutes on two cores, the first time)"
  build 0 "$containerd_tags" "-X $containerd_pkg/version.Version=$version" \
    $containerd_pkg/cmd/containerd $containerd_pkg/cmd/ctr
  quiet_shim
  (pins=$stage/shim; build 0 "$containerd_tags no_grpc" "-X $containerd_pkg/version.Version=$version" $containerd_pkg/cmd/containerd-shim-runc-v2)

  # Static, so that the bundle also runs on hosts without libseccomp.
  say "building runc $(pinned $runc_pkg) with seccomp"
  build 1 "seccomp netgo osusergo urfave_cli_no_docs" "-linkmode external -extldflags -static" $runc_pkg

  version=$(pinned $cni_pkg)
  say "building the CNI plugins $version: bridge, host-local, loopback, portmap"
  build 0 "" "-X $cni_pkg/pkg/utils/buildversion.BuildVersion=$version" \
    $cni_pkg/plugins/main/bridge $cni_pkg/plugins/ipam/host-local $cni_pkg/plugins/main/loopback $cni_pkg/plugins/meta/portmap

  say "building the pause image $pause_image"
  "${cross}gcc" -std=c11 -D_GNU_SOURCE -Os -Wall -Wextra -Werror -static -s -Wl,--gc-sections -Wl,--build-id=none \
    -o "$stage/pause" "$pins/pause/pause.c"
  (cd "$repo/pkg" && GOWORK=off GOFLAGS=-mod=readonly go run ./image/cmd/dhow-image -architecture "$architecture" -o "$stage/pause.tar" -tag $pause_image \
    -file "$stage/pause=/pause" -entrypoint /pause -user 65535:65535)

  check_bundle
  # Renamed one by one: a running process keeps its old file, and no file is ever half written.
  local file
  for file in $bundle_files; do
    mv -f "$stage/$file" "$runtime_dir/$file"
  done
  bundle_stamp >"$runtime_dir/.stamp"
  say "runtime bundle: built in $((SECONDS - started)) s, $(du -sh "$runtime_dir" | cut -f1) in $runtime_dir"
}

check_bundle() {
  local file
  for file in containerd ctr runc bridge; do
    go version -m "$stage/$file" | grep -q "GOARCH=$architecture" || fail "the built $file is not for $architecture"
  done
  grep -aqF pkg/shim/work.go "$stage/containerd-shim-runc-v2" || fail "the built shim is not the quiet one"
  # Programs of another architecture cannot be asked.
  [ -z "$cross" ] || return 0
  "$stage/containerd" --version >/dev/null || fail "the built containerd does not start"
  "$stage/runc" --version | grep -q libseccomp || fail "the built runc lacks seccomp support: check libseccomp-dev and pkg-config"
  local plugin
  for plugin in bridge host-local loopback portmap; do
    echo '{"cniVersion":"1.0.0"}' | CNI_COMMAND=VERSION "$stage/$plugin" | grep -q supportedVersions ||
      fail "the built CNI plugin $plugin does not answer"
  done
}

# The bundle of another architecture, with Debian's compiler for it and its libraries, which are unpacked and not installed.
foreign_bundle() {
  case $1 in
    arm64) cross=aarch64-linux-gnu- ;;
    amd64) cross=x86_64-linux-gnu- ;;
    *) fail "architecture $1: the runtime is built for amd64 and arm64" ;;
  esac
  [ "$1" != "$architecture" ] || fail "architecture $1 is this machine's: run tools/setup.sh"
  [ -n "${DHOW_RUNTIME_DIR:-}" ] || fail "--bundle: name the folder in DHOW_RUNTIME_DIR"
  local compiler=${cross%-}
  compiler=gcc-${compiler//_/-}
  architecture=$1
  packages="
$compiler   compiles runc and the pause program for $architecture
libc6-dev-$architecture-cross   static C library of $architecture
pkg-config  finds libseccomp for cgo
"
  install_packages
  sysroot=$runtime_dir/.libraries
  rm -rf "$sysroot"
  mkdir -p "$sysroot"
  "$repo/tools/foreign-packages.sh" "$architecture" "$sysroot" libseccomp-dev
  printf '#!/bin/sh\nexec %sgcc "$@" -I%s -L%s\n' "$cross" "$sysroot/usr/include" "$sysroot/usr/lib/${cross%-}" >"$sysroot/dhow-gcc"
  chmod +x "$sysroot/dhow-gcc"
  build_bundle
}

docker_current() { [ -x "$docker_dir/usr/sbin/dockerd" ] && [ -x "$docker_dir/usr/bin/containerd" ] && [ -x "$docker_dir/usr/sbin/runc" ]; }

unpack_docker() {
  local package
  if docker_current; then
    say "docker for the test of deploy/compose: there"
    return
  fi
  command -v apt-get >/dev/null || fail "bin/docker needs these packages of Debian, unpacked with dpkg -x: $docker_packages"
  say "unpacking into bin/docker, for the test of deploy/compose: $docker_packages"
  [ -z "${stage:-}" ] || rm -rf "$stage" # of the runtime bundle
  mkdir -p "$repo/bin"
  stage=$(mktemp -d "$repo/bin/.docker.XXXXXX")
  trap 'rm -rf "$stage"' EXIT
  # shellcheck disable=SC2086 # a list of names
  (cd "$stage" && { apt-get download -qq $docker_packages 2>/dev/null || { apt-get update -qq && apt-get download -qq $docker_packages; }; })
  for package in "$stage"/*.deb; do
    dpkg -x "$package" "$stage/root"
  done
  rm -rf "$docker_dir"
  mv "$stage/root" "$docker_dir"
  docker_current || fail "the packages $docker_packages hold no dockerd, containerd and runc where they used to"
}

list() {
  local missing
  missing=$(missing_packages)
  if [ -n "$missing" ]; then
    say "would install these Debian packages:"
    printf '%s\n' "$missing" | sed 's/^/setup:   /'
  else
    say "Debian packages: all present"
  fi
  if command -v go >/dev/null && bundle_current; then
    say "runtime bundle: up to date in $runtime_dir"
  else
    say "would build into $runtime_dir: $bundle_files"
    awk -v a=$containerd_pkg -v b=$runc_pkg -v c=$cni_pkg '$1 == a || $1 == b || $1 == c { print "setup:   from " $1, $2 }' "$pins/go.mod"
  fi
  if docker_current; then
    say "docker for the test of deploy/compose: there"
  else
    say "would unpack into bin/docker, and not install, these Debian packages: $docker_packages"
  fi
}

case "${1:-}" in
  --list) list ;;
  --bundle) foreign_bundle "${2:-}" ;;
  "") install_packages && build_bundle && unpack_docker ;;
  *) fail "unknown argument $1: use --list, --bundle or nothing" ;;
esac
