#!/usr/bin/env bash
# The paper preset of figure 2 on one GPU, the panels that settle most first; what is done is kept, what runs is saved
# every two minutes. It installs nothing, reads its data from one folder, can be stopped anywhere, and goes on when it
# is called again.
#
#   DATA=folder/of/prepared/sets OUT=folder MINUTES=28 benchmarks/reproduce_gpu.sh
set -uo pipefail
cd "$(dirname "$0")/.."

DATA="${DATA:?the folder with the prepared data sets (--data-dir of the experiments)}"
OUT="${OUT:-runs/reproduce/gpu}"
end=$((SECONDS + 60 * ${MINUTES:-28}))

# run SEEDS RESNET_SEEDS PANEL ARM...
run() {
    local left=$((end - SECONDS))
    [ "$left" -gt 30 ] || return 0
    local seeds=$1 deep=$2 panel=$3
    shift 3
    "${PYTHON:-python}" benchmarks/reproduce.py --preset paper --seeds "$seeds" --resnet-seeds "$deep" \
        --panels "$panel" --arms "$@" --data-dir "$DATA" --out "$OUT" --work "$OUT/work" --save-minutes 2 \
        --budget "$(awk "BEGIN {print $left / 60}")" --no-progress
}

# LeNet: eight seeds of eight replicas are one program of 64 replicas.
run 8 2 emnist_dropout independent tempering
run 8 2 resnet20 independent tempering
run 8 2 cifar10_dropout independent tempering
run 8 2 emnist_learning_rate independent tempering
run 8 2 cifar10_learning_rate independent tempering
run 8 1 resnet44 independent tempering
for panel in emnist_dropout cifar10_dropout emnist_learning_rate cifar10_learning_rate; do
    run 8 2 "$panel" auto pbt
done
run 8 2 resnet20 auto pbt
run 8 1 resnet44 auto pbt
"${PYTHON:-python}" benchmarks/reproduce_tables.py "$OUT"
