#!/usr/bin/env bash
# Unpacks Debian packages of another architecture, and what they need, into a folder. Nothing is installed, and the machine's own lists of packages stay as they are.
#
#   tools/foreign-packages.sh ARCHITECTURE FOLDER PACKAGE...
set -euo pipefail
architecture=$1 folder=$2
shift 2
state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT
mkdir -p "$state/lists/partial" "$state/archives/partial"
: >"$state/status"
options=(-qq -o "APT::Architecture=$architecture" -o "APT::Architectures=$architecture" -o "Dir::State=$state" -o "Dir::State::status=$state/status" -o "Dir::Cache=$state"
  -o Debug::NoLocking=1 -o APT::Sandbox::User=root)
apt-get "${options[@]}" update
apt-get "${options[@]}" -y install --download-only --no-install-recommends "$@"
for package in "$state"/archives/*.deb; do
  dpkg -x "$package" "$folder"
done
