#!/bin/sh
# Generates the client's code from proto/ and runs pods.py; all arguments are passed on (see pods.py --help).
# Needs Debian's python3-grpcio, python3-protobuf, protobuf-compiler and protobuf-compiler-grpc; PYTHON chooses another interpreter.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
proto=$here/../../../proto
python=${PYTHON:-/usr/bin/python3}

for program in protoc grpc_python_plugin "$python"; do
	command -v "$program" >/dev/null || {
		echo "run.sh: $program is missing: apt-get install python3-grpcio python3-protobuf protobuf-compiler protobuf-compiler-grpc" >&2
		exit 1
	}
done

generated=$(mktemp -d)
trap 'rm -rf "$generated"' EXIT
find "$proto" -name '*.proto' -exec protoc -I "$proto" --python_out="$generated" \
	--plugin=protoc-gen-grpc="$(command -v grpc_python_plugin)" --grpc_out="$generated" {} +

PYTHONPATH=$generated PYTHONDONTWRITEBYTECODE=1 "$python" "$here/pods.py" "$@"
