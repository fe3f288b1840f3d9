#!/bin/sh
# Fetches NVRTC, the compiler for GPUs that `dsmc build --target sm_90a` opens, from PyPI (58 MB; no
# GPU, driver or CUDA is needed), once, quietly, into $XDG_DATA_HOME/dsmc/lib (~/.local/share/dsmc/lib),
# where dsmc looks for it. Nothing is installed.
#
#   scripts/nvrtc.sh
set -eu
folder=${XDG_DATA_HOME:-$HOME/.local/share}/dsmc/lib
[ -e "$folder/libnvrtc.so.13" ] && exit 0

pip=
for p in "python3 -m pip" pip3 pip; do
  $p --version >/dev/null 2>&1 && pip=$p && break
done
[ -n "$pip" ] || { echo "nvrtc.sh: needs pip (Debian: apt install python3-pip)" >&2; exit 1; }

mkdir -p "$folder"
work=$(mktemp -d "$folder/.fetch.XXXXXX") # beside its place, so that files appear whole
trap 'rm -rf "$work"' EXIT
echo "fetching NVRTC into $folder" >&2
if ! $pip download --quiet --no-deps --only-binary :all: --disable-pip-version-check \
     -d "$work" 'nvidia-cuda-nvrtc>=13,<14' >"$work/log" 2>&1; then
  cat "$work/log" >&2
  echo "nvrtc.sh: could not fetch nvidia-cuda-nvrtc" >&2
  exit 1
fi
python3 -m zipfile -e "$work"/*.whl "$work/wheel"
# The library last: it is what says that all is there.
for f in $(find "$work/wheel" -name 'libnvrtc-builtins.so.*') $(find "$work/wheel" -name 'libnvrtc.so.*'); do
  mv -f "$f" "$folder/"
done
[ -e "$folder/libnvrtc.so.13" ] || { echo "nvrtc.sh: the wheel holds no libnvrtc.so.13" >&2; exit 1; }
