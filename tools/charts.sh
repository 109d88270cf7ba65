#!/usr/bin/env bash
# Packs the Helm charts of helm/, each with the charts that it is made of, into DIR (dist/charts): one archive a chart, for `helm install`, and the same as folders in
# DIR/unpacked. VERSION is the version of the images that they install.
#
#   tools/charts.sh [DIR]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
dist=${1:-dist/charts}
version=${VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo unknown)}
helm=${HELM:-bin/helm4}
[ -x "$helm" ] || { echo "charts: $helm is missing: \`make helm\` builds it" >&2; exit 1; }
mkdir -p "$dist"
rm -rf "$dist/unpacked" "$dist"/*.tgz
cp -r helm "$dist/unpacked"
# A chart is packed after those that it depends on.
for chart in store apiserver scheduler controller-manager node-agent dhow; do
  [ -d "$dist/unpacked/$chart" ] || continue
  sed -i "s/^appVersion: .*/appVersion: \"$version\"/" "$dist/unpacked/$chart/Chart.yaml"
  "$helm" dependency update "$dist/unpacked/$chart" >/dev/null
  "$helm" package "$dist/unpacked/$chart" --destination "$dist" >/dev/null
done
