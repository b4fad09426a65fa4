#!/usr/bin/env bash
# The engine's figures in docs/results/h200-*.md, on a machine with a GPU and no more than torch, transformers and
# safetensors: h200_figures.sh PART ..., one after the other on the GPU that CUDA_VISIBLE_DEVICES names.
#
#   FX     has llama-8b (a configuration), the peer's adapters (all-r16, attn-r8, attn-mixed) and CASE.jsonl
#   OUT    takes the reports
#   COMMIT is what they are of
#
# `residents-cases` and `neighbours-cases` write their own cases and adapters into FX. A flood needs the host to itself.
set -uo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
: "${FX:?where models, adapters and cases lie}" "${OUT:?where reports go}" "${COMMIT:?which commit is measured}"
export PYTHONPATH="$source/packages/kernels/src:$source/packages/engine/src:$source/packages/wire/src:$source/packages/bench/src:${PYTHONPATH:-}"
mkdir -p "$OUT"

model=(--model "$FX/llama-8b" --load-format dummy --max-num-seqs 256)
beside_peer=("${model[@]}" --max-model-len 16384 --gpu-memory-utilization 0.85)
neighbours=("${model[@]}" --max-model-len 4096 --max-lora-rank 16)

failed=()
bench() { # NAME MEASUREMENT OPTION ...; one that fails does not keep the others from being made
    local name=$1 measurement=$2 started=$SECONDS
    shift 2
    echo "== $name, $(date -u +%FT%TZ)"
    if ! python3 -m "descant_bench.$measurement" "$@" >"$OUT/$name.txt" 2>&1; then
        failed+=("$name")
        tail -n 3 "$OUT/$name.txt"
    fi
    echo "   $name: $((SECONDS - started)) s"
}

throughput() { # NAME "CASE ..." OPTION ...
    local name=$1 case cases=()
    for case in $2; do cases+=("$FX/$case.jsonl"); done
    shift 2
    bench "$name" throughput "$@" --commit "$COMMIT" --requests "${cases[@]}" --output "$OUT/$name.json"
}

base() {
    throughput ours-base "decode-bs1 decode-bs8 decode-bs64 decode-bs256 prefill-8192 shared-prefix-2048
        throughput-512in-256out-1000" "${beside_peer[@]}" --repeats 3 --warmups 0 --prepare
}

lora-all() {
    throughput ours-lora-all "lora1-decode-bs1 lora64-decode-bs64 lora64-decode-bs256 lora64-all-r16-uniform
        decode-bs1 decode-bs64 decode-bs256" "${beside_peer[@]}" --repeats 3 --warmups 0 --prepare \
        --max-lora-rank 16 --adapters "$FX/all-r16"
}

lora-mixed() {
    throughput ours-lora-mixed lora128-attn-mixed-uniform-400 "${beside_peer[@]}" --repeats 3 --warmups 0 --prepare \
        --max-lora-rank 64 --adapter-host-bytes $((16 << 30)) --adapters "$FX/attn-mixed"
}

cold() { # three engines, each of which reads every adapter
    local run
    for run in 1 2 3; do
        bench "cold$run" cold_adapters "${beside_peer[@]}" --max-lora-rank 8 --adapter-host-bytes $((16 << 30)) \
            --adapters "$FX/attn-r8" --requests "$FX/lora512-attn-r8-uniform-400.jsonl"
    done
}

deterministic() {
    throughput deterministic "decode-bs1 decode-bs64 decode-bs256" "${beside_peer[@]}" --repeats 2 --warmups 0 \
        --prepare --deterministic
}

idle() {
    bench idle profile_steps "${beside_peer[@]}" --batch 64 --prompt-tokens 128 --copy-tb-s 4.26 --tflops 790 \
        --commit "$COMMIT" --output "$OUT/idle.json"
}

residents-cases() {
    bench residents-cases residents --model "$FX/llama-8b" --output "$FX" --num-requests 400 --prompt-tokens 256 \
        --max-tokens 128 --generate-on cuda
}

neighbours-cases() { # after residents-cases, whose adapters they use
    bench neighbours-cases neighbours --model "$FX/llama-8b" --output "$FX" --each 4 --rates 60
}

residents() {
    throughput residents "residents-1-uniform residents-8-uniform residents-64-uniform residents-256-uniform
        residents-1000-uniform residents-64-zipf1 residents-1000-zipf1" "${neighbours[@]}" --repeats 1 --warmups 1 \
        --gpu-memory-utilization 0.93 --adapter-host-bytes $((8 << 30)) --roofline --copy-tb-s 4.26 --tflops 790 \
        --adapters "$FX/adapters"
}

rooms() {
    local options=("${neighbours[@]}" --repeats 3 --warmups 1 --gpu-memory-utilization 0.85
        --adapter-host-bytes $((24 << 30)) --adapters "$FX/adapters")
    throughput many-all many "${options[@]}"
    throughput many-32 many "${options[@]}" --max-loras 32
}

flood() {
    throughput flood "calm-60 flood-60" "${neighbours[@]}" --repeats 3 --warmups 1 --gpu-memory-utilization 0.85 \
        --prepare --adapters "$FX/adapters"
}

grammars() {
    local temperature
    for temperature in 0 1; do
        bench "grammar-$temperature" grammar_cost --model "$FX/llama-8b" --batch-size 64 --input-len 64 \
            --output-len 256 --rounds 3 --temperature "$temperature" --commit "$COMMIT" \
            --output "$OUT/grammar-$temperature.json"
    done
}

parts="base lora-all lora-mixed cold deterministic idle residents-cases neighbours-cases residents rooms flood grammars"
for part in "${@:?which of $parts}"; do
    if [[ " $parts " != *" $part "* ]]; then
        echo "no part is named $part; there are: $parts" >&2
        exit 2
    fi
done
for part in "$@"; do
    "$part"
done
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
