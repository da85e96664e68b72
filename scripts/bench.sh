#!/usr/bin/env bash
# Runs all benches, or those that are named, and prints their figures as one table at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

figures=$(mktemp)
trap 'rm -f "$figures"' EXIT

names=("$@")
if ((${#names[@]} == 0)); then
    for bench in benches/*.rs; do names+=("$(basename "$bench" .rs)"); done
fi
for name in "${names[@]}"; do
    printf '\n== %s\n' "$name"
    "${CARGO:-cargo}" bench --quiet --bench "$name" | tee -a "$figures"
done

printf '\n== all figures: name, measured, target\n'
cat "$figures"
short=$(grep -c 'short$' "$figures" || true)
printf '\n%s figures, %s short of their target\n' "$(wc -l < "$figures")" "$short"
