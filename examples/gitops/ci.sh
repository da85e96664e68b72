#!/bin/sh
# What the repository's CI runs for every change. Needs the vmlet binary and nothing else.
set -eu
cd "$(dirname "$0")"
vmlet="${VMLET:-vmlet}"

"$vmlet" validate manifests
for scenario in scenarios/*.yaml; do
    echo "== $scenario"
    "$vmlet" simulate manifests --scenario "$scenario" --seeds "${SEEDS:-20}"
done
