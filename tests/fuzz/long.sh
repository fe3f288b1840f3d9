#!/bin/sh
# The long fuzz runs: texts 2 million executions each, every other reader 500 thousand.
#
#   tests/fuzz/long.sh [BUILD]      BUILD as .ci/run makes it: -DDSM_FUZZ=ON -DDSM_SANITIZE=ON, clang
#
# New inputs that reach new code go to tests/fuzz/corpus/NAME: keep the small ones.
set -eu
cd "$(dirname "$0")/../.."
build=${1:-build-asan}
for f in "$build"/fuzz_*; do
  name=$(basename "$f")
  name=${name#fuzz_}
  case $name in parse | sema) runs=2000000 len=1024 ;; *) runs=500000 len=4096 ;; esac
  new=$(mktemp -d)
  echo "$name: $runs executions"
  "$f" -runs=$runs -timeout=1 -rss_limit_mb=512 -max_len=$len -print_final_stats=1 "$new" \
    "tests/fuzz/corpus/$name" >"$build/fuzz_$name.long.log" 2>&1 ||
    { tail -n 40 "$build/fuzz_$name.long.log"; exit 1; }
  grep -E 'number_of_executed_units|peak_rss' "$build/fuzz_$name.long.log"
  rm -rf "$new"
done
