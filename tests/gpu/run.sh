#!/usr/bin/env bash
# Everything that needs a GPU, in one call of at most 8 minutes on a bare CUDA machine without network:
# builds for the GPU at hand, checks every kernel against its twin and whole models against the core, runs the sanitizers,
# times all at the released shape and beside an eager PyTorch loop, and writes one report.
#
#   bash tests/gpu/run.sh [REPORT]        default: build/gpu/report.md; exit status 0 only if all that must pass passed
#
# Needs: nvcc, CMake >= 3.26, a C++20 compiler. Used where they are: ninja, compute-sanitizer, PyTorch; for the goldens
# through device="cuda" also numpy, soundfile, tokenizers and pybind11 (a folder .whl with wheels of what is missing is used).
set -uo pipefail
cd "$(dirname "$0")/../.."
build=build/gpu
report=${1:-$build/report.md}
mkdir -p "$build" "$(dirname "$report")"
failed=0
budget=460  # seconds: a borrowed machine's longest call is 10 minutes
export PATH=$PATH:/usr/local/cuda/bin

note() { printf '%s\n' "$*" | tee -a "$report"; }
# check NAME SECONDS COMMAND...: runs it, and says in the report how it went.
check() {
    local name=$1 limit=$2 begin=$SECONDS status=0 left=$((budget - SECONDS))
    shift 2
    if [ $left -lt 5 ]; then
        failed=1
        note "- **not run**, the $budget s are over: $name"
        return 1
    fi
    [ "$limit" -gt $left ] && limit=$left
    local log=$build/${name//[^a-zA-Z0-9]/_}.log
    timeout "$limit" "$@" >"$log" 2>&1 || status=$?
    if [ $status -eq 0 ]; then
        note "- passed: $name ($((SECONDS - begin)) s)"
    else
        failed=1
        note "- **FAILED** ($status): $name ($((SECONDS - begin)) s)"
        note '```'
        tail -n 25 "$log" | tee -a "$report"
        note '```'
    fi
    return $status
}
skip() { note "- skipped: $1"; }

: >"$report"
note "# GPU report, $(date -u '+%Y-%m-%d %H:%M UTC'), commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
note ""
note '```'
{ nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total --format=csv,noheader; nvcc --version | grep release; } 2>&1 | tee -a "$report"
note '```'
note ""
note "## Correct"
note ""

capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
generator=()
command -v ninja >/dev/null && generator=(-G Ninja)
python=()
if ls .whl/*.whl >/dev/null 2>&1; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$PWD/$build/site" .whl/*.whl
    export PYTHONPATH=$PWD/$build/site:${PYTHONPATH:-}
fi
if python3 -c 'import pybind11, numpy, soundfile, tokenizers, torch' 2>/dev/null; then
    python=(-DMIMO_PYTHON=ON "-Dpybind11_DIR=$(python3 -m pybind11 --cmakedir)" "-DPython_EXECUTABLE=$(command -v python3)" -DPYBIND11_FINDPYTHON=ON)
fi
targets=(mimo_cuda mimo_gpu_tests mimo_gpu_bench)
[ ${#python[@]} -gt 0 ] && targets+=(_core)
check configure 60 cmake -S . -B "$build" ${generator[@]+"${generator[@]}"} -DMIMO_CUDA=ON -DMIMO_WERROR=ON "-DMIMO_CUDA_ARCHITECTURES=$capability-real" \
    ${python[@]+"${python[@]}"} || exit 1
check "build for SM $capability, warnings as errors" 240 cmake --build "$build" --parallel "$(nproc)" --target "${targets[@]}" || exit 1
check "kernels and models against the core (mimo_gpu_tests)" 60 "$build/mimo_gpu_tests"
if [ ${#python[@]} -gt 0 ]; then
    site=$build/python/mimo_edge
    rm -rf "$build/python" && mkdir -p "$site"
    cp -r runtime/mimo_edge/. "$site" && cp -r export "$site/export" && cp -r quantize "$site/quantize"
    cp "$build"/_core*.so "$build/libmimo_cuda.so" "$site"
    mkdir -p "$build/python/mimo_edge-0.dist-info"  # what an installation would have: a version
    printf 'Metadata-Version: 2.1\nName: mimo-edge\nVersion: 0\n' >"$build/python/mimo_edge-0.dist-info/METADATA"
    for goldens in tests/goldens shared/goldens/*/; do
        [ -d "$goldens" ] || continue
        check "goldens through device=cuda: $goldens" 90 env "PYTHONPATH=$PWD/$build/python:${PYTHONPATH:-}" \
            python3 -m mimo_edge.cli verify "$goldens" --device cuda
    done
else
    skip "goldens through device=cuda (pybind11, numpy, soundfile, tokenizers or torch is missing: carry them as .whl/*.whl)"
fi
note ""
note "## Fast"
note ""
if timeout 120 "$build/mimo_gpu_bench" 2>"$build/bench.err" | tee -a "$report"; then :; else
    failed=1
    note "**FAILED**: mimo_gpu_bench: $(tail -n 3 "$build/bench.err")"
fi
if python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    timeout 60 python3 tests/gpu/eager.py 2>"$build/eager.err" | tee -a "$report" || note "eager loop failed: $(tail -n 2 "$build/eager.err")"
else
    skip "eager loop: no PyTorch with CUDA"
fi
note ""
note "## Clean"
note ""
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck synccheck; do
        for part in linear attention sampler rvq codec; do
            check "compute-sanitizer $tool: $part" 45 compute-sanitizer --tool "$tool" --error-exitcode 9 "$build/mimo_gpu_tests" "device_$part"
        done
    done
    check "compute-sanitizer memcheck: a whole model" 60 compute-sanitizer --error-exitcode 9 "$build/mimo_gpu_tests" device_model_equals_the_core_int8
else
    skip "compute-sanitizer is not here"
fi

note ""
note "$([ $failed -eq 0 ] && echo 'All that must pass passed.' || echo '**Something failed.**') $SECONDS s in all."
exit $failed
