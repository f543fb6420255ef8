#!/bin/sh
# Everything that is to be shown on a GPU, in one run that is made for eight minutes: first that results are those of the CPU,
# then times and memory beside other packages. It needs no network. From a clone, on a machine with a GPU:
#
#     pip install -e '.[recsys,triton]'           # torch for CUDA brings Triton
#     benchmarks/gpu.sh                           # writes benchmarks/gpu/results/compare.json
#     benchmarks/gpu.sh --small --device cpu      # the same script on small tables, on any machine
set -eu
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m benchmarks.gpu.compare "$@"
