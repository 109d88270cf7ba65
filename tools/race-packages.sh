#!/usr/bin/env bash
# Lists the packages whose unit and integration tests also run under the race detector: those that start goroutines.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
grep -rlE '^\s*(go |group\.Go\(|g\.Go\()|sync\.|atomic\.' --include='*.go' pkg services cli examples |
  xargs -n1 dirname | sort -u | grep -v '/cmd/' | sed 's|^|./|'
