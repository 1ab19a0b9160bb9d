#!/bin/sh
# Generates Python client stubs from the protocol: protos.sh PYTHON OUT_DIR
set -eu
python=$1
out=$2
mkdir -p "$out"
"$python" -m grpc_tools.protoc -I proto --python_out="$out" --grpc_python_out="$out" proto/baton/v1/*.proto
touch "$out/baton/__init__.py" "$out/baton/v1/__init__.py"
