#!/usr/bin/env bash
# Names everything that is missing for a build, at once, each with the command that installs it.
set -uo pipefail
missing=0
need() { # what it is, how it is checked, how it is installed
  if ! bash -c "$2" >/dev/null 2>&1; then
    [ $missing = 0 ] && echo "error: this machine lacks what fathom is built with" >&2
    echo "  $1: $3" >&2
    missing=1
  fi
}
need 'Rust (cargo), 1.90 or newer' 'v=$(cargo --version | cut -d" " -f2) && [ "$(printf "1.90.0\n%s\n" "$v" | sort -V | head -n 1)" = 1.90.0 ]' \
  'install rustup (https://rustup.rs), then: rustup update stable'
need 'a C++ compiler' 'command -v c++ || command -v g++ || command -v clang++' 'apt-get install g++'
if [ ! -e "$(dirname "$0")/../.libtorch/link/complete-2.11.0" ]; then
  need 'python3 (to fetch LibTorch from PyPI)' 'command -v python3' 'apt-get install python3'
  need 'pip for python3' 'python3 -m pip --version' 'apt-get install python3-pip'
fi
exit $missing
