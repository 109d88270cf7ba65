#!/usr/bin/env bash
# Makes systemd run the programs in /opt/dhow with a host's files. It needs root, and may be run again: with a new version's units, or renewed certificates. Nothing is started
# or restarted.
#
#   deploy/systemd/install.sh FILES       FILES is the host's folder that `dhow release hosts` made
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
fail() { echo "install: $*" >&2; exit 1; }
[ $# = 1 ] && [ -f "$1/dhow.env" ] || fail "give this host's folder, which dhow release hosts has made"
[ -x /opt/dhow/dhow-node-agent ] || fail "/opt/dhow has no programs: copy them there first"
for program in nft nsenter; do
  command -v "$program" >/dev/null || fail "$program is missing: install the packages nftables and util-linux"
done

ln -sfn /opt/dhow/dhow /usr/local/bin/dhow
install -m 0644 "$here"/*.service "$here"/*.target /etc/systemd/system/
install -D -m 0644 "$here/sysusers.conf" /etc/sysusers.d/dhow.conf
install -D -m 0644 "$here/tmpfiles.conf" /etc/tmpfiles.d/dhow.conf
systemd-sysusers /etc/sysusers.d/dhow.conf

# Over what is there: files keep their owners, so that a service can read its new certificate at once.
install -d -m 0755 /etc/dhow
cp -r "$1/." /etc/dhow/
systemd-tmpfiles --create /etc/tmpfiles.d/dhow.conf
systemctl daemon-reload
