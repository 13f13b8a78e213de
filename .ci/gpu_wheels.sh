#!/usr/bin/env bash
# What `python -m benchmarks.gpu` needs beside Python 3.12 and a CUDA build of PyTorch with its usual company (numpy,
# tokenizers, safetensors, torchmetrics, rich, matplotlib, pytest, hypothesis), as wheels for a machine without network:
#   .ci/gpu_wheels.sh FOLDER [PACKAGE ...]        further packages by name, at the versions of constraints.txt
# There:
#   python3 -m pip install --no-index --no-deps --target SITE FOLDER/*.whl
#   PYTHONPATH=SITE python3 -m benchmarks.gpu --json OUT
# Ends with the size of all wheels in the folder; above 56 MiB (with this repository 64) with exit code 1.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: .ci/gpu_wheels.sh FOLDER [PACKAGE ...]" >&2; exit 2; }
folder=$1 pins="$(dirname "$0")/../constraints.txt" python=${PYTHON:-python3}
shift
chosen=()
for package in transformers peft lightning jsonargparse typeshed_client docstring_parser omegaconf rouge_score nltk defusedxml \
    absl_py six "$@"; do
    chosen+=("$(grep -iE "^${package//[-_.]/[-_.]}==" "$pins")") || { echo "$package is not in constraints.txt" >&2; exit 2; }
done
platforms=(--platform manylinux1_x86_64 --platform manylinux2014_x86_64)
for glibc in 17 24 27 28 31 34 35; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
mkdir -p "$folder"
for one in "${chosen[@]}"; do
    "$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        "${platforms[@]}" -d "$folder" "$one" 2>/dev/null ||
        "$python" -m pip wheel -q --no-deps -w "$folder" "$one" # published as source alone, all of it Python
done
size=$(du -cb "$folder"/*.whl | tail -1 | cut -f1)
echo "$(ls "$folder"/*.whl | wc -l) wheels, $((size / 1048576)) MiB, in $folder"
[ "$size" -le $((56 * 1048576)) ] || { echo "more than 56 MiB" >&2; exit 1; }
