#!/usr/bin/env bash
# Steps lost over many SIGKILLs at random moments, to the harness, its workers or both: none, or this fails. The kills are made
# to two sweeps: a grid, whose final table has to be that of one that was left alone, and one of successive halving.
# bench/kills.sh [KILLS]
set -euo pipefail
cd "$(dirname "$0")/.."
FATHOM_KILLS=${1:-1000} cargo test --release --workspace --test scheduler kills_at_any_moment -- --nocapture
