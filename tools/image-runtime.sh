#!/usr/bin/env bash
# Puts into DIST what the node agent's image needs beside the agent: the bundled container runtime, and the two programs of Debian that the agent
# starts (nft and nsenter) with the libraries that they load, so that the image has no shell and no package manager.
#
#   tools/image-runtime.sh ARCHITECTURE DIST
#
# The runtime is C in part (runc, pause): for another architecture than this machine's it is built with Debian's compiler for that one, and the programs come from its packages.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
architecture=$1 dist=$2

runtime=bin/runtime root=
if [ "$architecture" != "$(go env GOARCH)" ]; then
  runtime=$PWD/bin/runtime-$architecture
  DHOW_RUNTIME_DIR=$runtime tools/setup.sh --bundle "$architecture"
  root=$(mktemp -d)
  trap 'rm -rf "$root"' EXIT
  tools/foreign-packages.sh "$architecture" "$root" nftables util-linux
fi

for file in containerd containerd-shim-runc-v2 ctr runc bridge host-local loopback portmap; do
  install -m 0755 -D "$runtime/$file" "$dist/runtime/$file"
done
install -m 0644 -D "$runtime/pause.tar" "$dist/runtime/pause.tar"
install -m 0755 -D "$runtime/pause" "$dist/runtime/pause"

# Each library under the name by which it is asked for, whatever links it has. This machine's programs are asked which they load; those of another architecture are read.
libraries() {
  if [ -z "$root" ]; then
    ldd "$1" | awk '$2 == "=>" { print $3 } $1 ~ /^\// { print $1 }'
    return
  fi
  local seen=" " left needed name path
  left=$(needs "$1")
  while [ -n "$left" ]; do
    needed=
    for name in $left; do
      case $seen in *" $name "*) continue ;; esac
      seen="$seen$name "
      path=$(cd "$root" && find . -name "${name##*/}" -path '*lib*' | head -n 1)
      [ -n "$path" ] || { echo "images: $1 of $architecture needs $name, which no package brought" >&2; return 1; }
      case $name in /*) echo "$name" ;; *) echo "${path#.}" ;; esac
      needed="$needed $(needs "$root/$path")"
    done
    left=${needed# }
  done
}

# needs are the names of the libraries that a program or library names itself, the dynamic linker's path among them.
needs() { readelf -W -l -d "$1" | sed -nE 's/.*Shared library: \[(.*)\]/\1/p; s/.*program interpreter: (.*)\]/\1/p'; }

for program in nft nsenter; do
  if [ -z "$root" ]; then
    path=$(command -v "$program") || { echo "images: $program is not installed: run \`make setup\`" >&2; exit 1; }
  else
    path=$(find "$root" -path "*bin/$program" | head -n 1)
  fi
  install -m 0755 -D "$path" "$dist/host/usr/sbin/$program"
  libraries "$path" | while read -r library; do
    # /lib is a link to /usr/lib on Debian: what is asked for there is found there.
    from=$root$library
    [ -e "$from" ] || from=$root/usr$library
    [ -e "$from" ] || from=$root${library#/usr}
    install -m 0755 -D "$from" "$dist/host$library"
  done
done
