#!/usr/bin/env bash
# Times one full-parameter step of a 7B shape three ways, one after the other on one machine: the layered engine, the plain
# one with each layer recomputed, and an independent PyTorch script (bench/recipe.py), where Python with PyTorch is there.
#
#   bench/step.sh [llama2_7b|mistral_7b] [TOKENS ...]
#
# CAP=24GiB     what the device's allocator may hand out; the plain engine, which needs more, runs without
# STEPS=3       timed after one that is not
# PLAIN=4096    lengths at which the plain engine is timed too
# SETTINGS=     more settings of the layered engine: "train.attention_head_groups=8 ..."
# FATHOM=       the program; RESULTS= where runs and tables go
#
# TFLOP/s are of the arithmetic that is carried out: with everything recomputed once 8 P_d T + 9 L (N H) T^2, less what a
# setting saves. RESULTS.md has what one machine gave.
set -euo pipefail
cd "$(dirname "$0")/.."

shape=${1:-llama2_7b}
shift || true
lengths=("${@:-4096}")
CAP=${CAP:-24GiB} STEPS=${STEPS:-3} PLAIN=${PLAIN-4096} SETTINGS=${SETTINGS:-}
FATHOM=${FATHOM:-target/release/fathom}
# A folder of its own: a run that is there already is not timed again.
RESULTS=${RESULTS:-results/bench/$(date +%Y%m%d-%H%M%S)}
if [ -e "$RESULTS/fathom.db" ]; then
  echo "$RESULTS: expected a new folder, found runs, which would not be timed again" >&2
  exit 1
fi
case $CAP in
*[0-9]GiB) ;;
*) echo "CAP: expected gibibytes, such as 24GiB, found $CAP" >&2 && exit 1 ;;
esac
mkdir -p "$RESULTS"

# fathom's own: one run, of which the database keeps every step.
timed() { # ENGINE TOKENS ARGUMENTS...
  local engine=$1 tokens=$2
  shift 2
  "$FATHOM" train "templatelib/long_context/$shape.yaml" --results "$RESULTS" \
    --set "train.sequence_length=$tokens" --set "train.total_tokens=$((tokens * (STEPS + 1)))" \
    --set "train.engine=$engine" "$@" >"$RESULTS/$engine-$shape-$tokens.log" 2>&1 ||
    echo "$engine, $tokens tokens: $(tail -1 "$RESULTS/$engine-$shape-$tokens.log")" >&2
}

for tokens in "${lengths[@]}"; do
  settings=()
  for setting in $SETTINGS; do settings+=(--set "$setting"); done
  timed layered "$tokens" --set "run.memory_cap=$CAP" "${settings[@]}"
done
for tokens in $PLAIN; do
  timed plain "$tokens" --set train.activation_checkpointing=true
done
if python3 -c 'import torch' 2>/dev/null; then
  python3 bench/recipe.py --shape "$shape" --tokens "$(IFS=,; echo "${lengths[*]}")" --warmup 1 --steps "$STEPS" \
    --memory-cap-gib "${CAP%GiB}" --json "$RESULTS/recipe-$shape.jsonl" >&2 ||
    echo "bench/recipe.py failed" >&2
fi

"$FATHOM" sql --results "$RESULTS" --format markdown "
  WITH timed AS (
    SELECT r.id, json_extract(r.config, '\$.train.sequence_length') AS tokens, m.value AS seconds,
           row_number() OVER (PARTITION BY r.id ORDER BY m.value) AS place, count(*) OVER (PARTITION BY r.id) AS of
    FROM runs r JOIN metrics m ON m.run = r.id JOIN metric_keys k ON k.id = m.key
    WHERE k.key = 'step_seconds' AND m.step > 1)
  SELECT json_extract(r.config, '\$.train.engine') AS engine, t.tokens,
         round(t.seconds, 3) AS seconds, round(t.tokens / t.seconds) AS 'tokens/s',
         round(r.peak_allocated / 1073741824.0, 2) AS 'peak GiB',
         round(json_extract(f.value, '\$.hardware_flops') / t.seconds / 1e12) AS 'TFLOP/s',
         json_extract(f.value, '\$.settings.recompute') AS recompute,
         json_extract(f.value, '\$.settings.attention_head_groups') AS 'head groups', r.device_name AS device
  FROM timed t JOIN runs r ON r.id = t.id LEFT JOIN facts f ON f.run = r.id AND f.name = 'plan'
  WHERE t.place = (t.of + 1) / 2 AND r.status = 'finished' ORDER BY t.tokens, engine"
