#!/usr/bin/env bash
# Puts into DIST what the node agent's image needs beside the agent: the bundled container runtime, and the two programs of Debian that the agent
# starts (nft and nsenter) with the libraries that they load, so that the image has no shell and no package manager.
#
#   tools/image-runtime.sh ARCHITECTURE DIST
#
# The runtime is C in part (runc, pause), so it is taken from a machine of that architecture: this one, or RUNTIME_<ARCHITECTURE> names a folder
# that this script made on another (its runtime and host folders).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
architecture=$1 dist=$2

if [ "$architecture" != "$(go env GOARCH)" ]; then
  given=RUNTIME_$architecture
  if [ -z "${!given:-}" ]; then
    echo "images: the node agent's runtime for $architecture is built on such a machine: run \`make images\` there and name its dist/linux_$architecture in $given" >&2
    exit 1
  fi
  cp -r "${!given}/runtime" "${!given}/host" "$dist/"
  exit
fi

for file in containerd containerd-shim-runc-v2 ctr runc bridge host-local loopback portmap; do
  install -m 0755 -D "bin/runtime/$file" "$dist/runtime/$file"
done
install -m 0644 -D bin/runtime/pause.tar "$dist/runtime/pause.tar"
install -m 0755 -D bin/runtime/pause "$dist/runtime/pause"

# Each library under the name by which it is asked for, whatever links it has on this machine.
libraries() { ldd "$1" | awk '$2 == "=>" { print $3 } $1 ~ /^\// { print $1 }'; }
for program in nft nsenter; do
  path=$(command -v "$program") || { echo "images: $program is not installed: run \`make setup\`" >&2; exit 1; }
  install -m 0755 -D "$path" "$dist/host/usr/sbin/$program"
  libraries "$path" | while read -r library; do
    install -m 0755 -D "$library" "$dist/host$library"
  done
done
