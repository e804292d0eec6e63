#!/usr/bin/env bash
# What a GPU is good for, in a quarter of an hour: whether its numbers are right, the time of a step of M replicas beside
# the alternatives, the choice of `jaxpt.tune`, and then the paper's ResNet-20 for the time that is left. Every file is
# written as it goes; a part that fails or takes too long leaves the others their turn. It installs nothing. PyTorch is
# measured if it is there; the ResNet-20 needs prepared data.
#
#   benchmarks/gpu.sh                                            # into benchmarks/results/gpu
#   DATA=folder/of/prepared/sets MINUTES=60 benchmarks/gpu.sh
#   STEPS=1 ROUNDS=1 LENETS=2 RESNETS=1 BATCH=4 CASES=toy benchmarks/gpu.sh      # a trial on a CPU
set -uo pipefail
cd "$(dirname "$0")/.."

OUT="${OUT:-benchmarks/results/gpu}"
STEPS="${STEPS:-20}" ROUNDS="${ROUNDS:-5}" BATCH="${BATCH:-128}"
LENETS="${LENETS:-8 64 256}" RESNETS="${RESNETS:-8 16}" CASES="${CASES:-lenet-16 lenet-128 resnet20-32 mlp-64}"
end=$((SECONDS + 60 * ${MINUTES:-14}))
mkdir -p "$OUT"

# part SECONDS SCRIPT ARGUMENT...: runs a script for so long at most, or for the time that is left.
part() {
    local limit=$1 left=$((end - SECONDS))
    shift
    [ "$left" -gt 20 ] || { echo "left out, no time: $*"; return 1; }
    [ "$limit" -lt "$left" ] || limit=$left
    echo "== $* (at most $limit s)"
    timeout --kill-after=10 "$limit" "${PYTHON:-python}" "benchmarks/$1" "${@:2}"
}

# steps SECONDS MODEL PRECISION REPLICAS VARIANT...
steps() {
    local limit=$1 model=$2 precision=$3 replicas=$4
    shift 4
    part "$limit" throughput.py --model "$model" --batch "$BATCH" --steps "$STEPS" --rounds "$ROUNDS" --compile \
        --replicas $replicas --precision "$precision" --variants "$@" --out "$OUT/throughput-$model-$precision.json"
}

# Wrong numbers make every time below worthless.
part 90 arithmetic.py --out "$OUT/arithmetic.json" || exit 1
steps 150 lenet high "$LENETS" sequential naive stock own torch
steps 150 resnet20 high "$RESNETS" sequential naive stock own torch
for precision in bfloat16 highest; do
    steps 90 lenet "$precision" "$LENETS" stock own torch
    steps 90 resnet20 "$precision" "$RESNETS" stock own torch
done
part 180 tuning.py --cases $CASES --out "$OUT/tuning.json"
left=$((end - SECONDS))
if [ -n "${DATA:-}" ] && [ "$left" -gt 60 ]; then
    part "$left" reproduce.py --preset paper --seeds 2 --resnet-seeds 2 --panels resnet20 --arms independent tempering \
        --data-dir "$DATA" --out "$OUT/reproduce" --work "$OUT/reproduce/work" --save-minutes 1 --no-progress \
        --budget "$(awk "BEGIN {print ($left - 40) / 60}")"
fi
