#!/usr/bin/env bash
# Brings a real Triton server into .tools/triton: the binaries inside the nvidia-pytriton wheel (55 MB, 144 MB unpacked).
# Nothing of it is imported, and none of its Python requirements is installed; `svd-hub serve-check` starts the binary.
set -euo pipefail
cd "$(dirname "$0")/.."

VERSION=0.7.0  # carries tritonserver 2.51.0
SHA256=21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df
PYTHON=${PYTHON:-.venv/bin/python}
PLACE=.tools/triton

if [ "$(cat "$PLACE/VERSION" 2>/dev/null)" = "$VERSION" ]; then
    touch "$PLACE/VERSION"
    exit 0
fi
part=$PLACE.part
rm -rf "$part"
mkdir -p "$part"
echo "nvidia-pytriton==$VERSION --hash=sha256:$SHA256" >"$part/requirements.txt"
"$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
    --target "$part" -r "$part/requirements.txt"
rm "$part/requirements.txt"
echo "$VERSION" >"$part/VERSION"
rm -rf "$PLACE"
mv "$part" "$PLACE"
echo "tritonserver of nvidia-pytriton $VERSION is in $PLACE"
