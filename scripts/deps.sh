#!/bin/sh
# Installs the Debian packages that building (and with `test`, testing) dsmc needs, once, quietly.
# Open MPI is among those of `test`: without it dsmc builds, and its executables run on one rank.
#
#   scripts/deps.sh [test]
#
# Idempotent: asks dpkg first and touches nothing when all is there. Works as root or with sudo.
set -eu
build="gcc libc6-dev binutils cmake ninja-build flex bison llvm-19-dev libjansson-dev libxxhash-dev libzstd-dev"
tests="clang-19 libclang-rt-19-dev clang-format-19 llvm-19-tools libcmocka-dev python3 valgrind openmpi-bin libopenmpi-dev"
want=$build
if [ "${1:-}" = test ]; then
  want="$build $tests"
  # For tests/e2e/external.py, any build of OpenBLAS: 6.7 MB to fetch, 43 MB installed.
  dpkg-query -W -f '${db:Status-Status}\n' 'libopenblas0-*' 2>/dev/null | grep -qx installed ||
    want="$want libopenblas0-pthread"
  # For the tests of code for GPUs; without it they are skipped.
  ldconfig -p 2>/dev/null | grep -q 'libnvrtc\.so' || "$(dirname "$0")/nvrtc.sh" || true
fi

missing=
for p in $want; do
  dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing="$missing $p"
done
[ -z "$missing" ] && exit 0

as_root=
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "deps.sh: needs root or sudo to install:$missing" >&2; exit 1; }
  as_root=sudo
fi
log=$(mktemp)
echo "installing:$missing" >&2
if ! { $as_root apt-get update -qq &&
       $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing; } >"$log" 2>&1; then
  cat "$log" >&2
  echo "deps.sh: could not install$missing" >&2
  rm -f "$log"
  exit 1
fi
rm -f "$log"
