#!/bin/sh
# Configures and builds into DIR (default build/). Prints only what goes wrong.
#
#   scripts/build.sh [DIR [cmake options...]]
set -eu
cd "$(dirname "$0")/.."
dir=${1:-build}
[ $# -gt 0 ] && shift
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { cmake -G Ninja -S . -B "$dir" "$@" && cmake --build "$dir"; } >"$log" 2>&1; then
  grep -vE '^\[[0-9]+/[0-9]+\] (Building|Linking)' "$log" >&2 || cat "$log" >&2
  exit 1
fi
