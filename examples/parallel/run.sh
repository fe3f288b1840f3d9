#!/bin/sh
# Trains one model under five plans and prints a table: plan, loss at step 20, bytes that all ranks
# sent in a step, and the memory of the fullest rank.
#
#   examples/parallel/run.sh [DSMC]
#
# The losses are the same numbers up to rounding: a plan says where and when, not what. Needs mpirun
# (scripts/deps.sh test installs it); ranks share this machine's cores, so times mean nothing here.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
dsmc=${1:-$here/../../build/dsmc}
command -v mpirun >/dev/null || { echo "run.sh: there is no mpirun; install Open MPI (openmpi-bin)" >&2; exit 1; }
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT INT TERM

# What an executable for some ranks says: the last loss, bytes of a step, bytes of the largest arena.
table_row() { # NAME RANKS PINS
  "$dsmc" build -q "$here/model.dsm" --cluster "this-host:$2" --pin "$3" -o "$out/program" 2>"$out/said" ||
    { cat "$out/said" >&2; exit 1; }
  start=
  [ "$2" -gt 1 ] && start="mpirun --oversubscribe -n $2"
  [ "$2" -gt 1 ] && [ "$(id -u)" -eq 0 ] && start="$start --allow-run-as-root"
  rm -f "$out/log"
  $start "$out/program" train -q --threads 1 --seed 1 --log "$out/log" >"$out/said" 2>&1 ||
    { cat "$out/said" >&2; exit 1; }
  loss=$(sed -n '$s/.*"loss": \([0-9.]*\).*/\1/p' "$out/log")
  bytes=$(sed -n '$p' "$out/log" | grep -o '"bytes":[0-9]*' | awk -F: '{ n += $2 } END { print n + 0 }')
  arena=$("$out/program" info --json | grep -o '"arena": *[0-9]*' | awk -F: '$2 > n { n = $2 } END { print n + 0 }')
  printf '%-34s %5s %9.5f %14d %14d\n' "$1" "$2" "$loss" "$bytes" "$arena"
}

printf '%-34s %5s %9s %14s %14s\n' plan ranks "loss 20" "bytes a step" "bytes a rank"
table_row "one rank" 1 "micro_batch=4"
table_row "data 4, ZeRO 3" 4 "data=4,zero=3,micro_batch=4"
table_row "tensor 2 x data 2, ZeRO 1" 4 "tensor=2,data=2,zero=1,micro_batch=4"
table_row "ulysses 2 x ring 2" 4 "ulysses=2,ring=2,zero=0,micro_batch=4"
table_row "pipeline 2 x tensor 2, 1F1B" 4 "pipeline=2,tensor=2,zero=0,micro_batch=4,order=one_f_one_b"
