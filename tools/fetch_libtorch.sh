#!/usr/bin/env bash
# Fetches LibTorch 2.11.0 from PyPI into .libtorch/ and lays out a link folder that serves CPU and GPU machines alike.
#
# The torch wheel holds headers and libraries. Linking against the wheel's own folder would make `libtorch_cuda.so` a hard
# need of the binary, so .libtorch/link holds just the CPU half: include/ and the four libraries that the linker has to see.
# At start the engine opens `libtorch_cuda.so` by itself where one is found beside `libtorch_cpu.so`.
set -euo pipefail
cd "$(dirname "$0")/.."

version=2.11.0
dir=$PWD/.libtorch
# Whole, and still where its links point: a checkout that was moved or copied has to be laid out anew.
if [ -e "$dir/link/complete-$version" ] && [ -e "$dir/link/include/ATen/ATen.h" ] &&
  [ -d "$(cat "$dir/link/runtime-path" 2>/dev/null)" ]; then exit 0; fi

command -v python3 >/dev/null || {
  echo "error: python3 was not found, and LibTorch comes from PyPI" >&2
  echo "  help: apt-get install python3 python3-pip" >&2
  exit 1
}
python3 -m pip --version >/dev/null 2>&1 || {
  echo "error: python3 has no pip, and LibTorch comes from PyPI" >&2
  echo "  help: apt-get install python3-pip" >&2
  exit 1
}
machine=$(uname -m)
if [ "$(uname -s)" != Linux ] || { [ "$machine" != x86_64 ] && [ "$machine" != aarch64 ]; }; then
  echo "error: expected Linux on x86_64 or aarch64, found $(uname -s) on $machine" >&2
  exit 1
fi

# An existing LibTorch of the same version may be linked instead of fetched: FATHOM_LIBTORCH_SITE=/path/to/site-packages.
site=${FATHOM_LIBTORCH_SITE:-}
if [ -z "$site" ]; then
  site=$dir/site
fi
# The wheels may be there already: of a checkout that was moved, or of a layout that did not come to its end.
if [ ! -e "$site/torch/include/ATen/ATen.h" ] || [ ! -e "$site/torch/lib/libtorch_cpu.so" ]; then
  if [ -n "${FATHOM_LIBTORCH_SITE:-}" ]; then
    echo "error: FATHOM_LIBTORCH_SITE: expected a site-packages folder with torch $version in it, found none at $site" >&2
    exit 1
  fi
  echo "fetching LibTorch $version from PyPI (about 0.5 GB, once)" >&2
  rm -rf "$dir" "$dir.part"
  # The wheels' own Python version does not matter: nothing of them is run. pip matches a platform tag exactly, so all are named.
  platforms=(--platform "manylinux2014_$machine")
  for minor in $(seq 17 35); do platforms+=(--platform "manylinux_2_${minor}_$machine"); done
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
    --target "$dir.part/site" --no-deps --no-compile \
    --only-binary=:all: --implementation cp --python-version 3.12 "${platforms[@]}" \
    "torch==$version" "nvidia-cuda-runtime==13.0.*" "nvidia-cuda-cupti==13.0.*"
  mv "$dir.part" "$dir"
fi

mkdir -p "$dir/link/lib"
ln -sfn "$site/torch/include" "$dir/link/include"
for lib in libtorch_cpu.so libc10.so; do ln -sfn "$site/torch/lib/$lib" "$dir/link/lib/$lib"; done
gomp=$(ls "$site"/torch/lib/libgomp*.so* 2>/dev/null | head -n 1)
ln -sfn "${gomp:?the torch wheel has no libgomp}" "$dir/link/lib/libgomp.so"
echo 'INPUT(libtorch_cpu.so)' >"$dir/link/lib/libtorch.so"
# Where the libraries really are: the engine's run path.
echo "$site/torch/lib" >"$dir/link/runtime-path"
touch "$dir/link/complete-$version"
