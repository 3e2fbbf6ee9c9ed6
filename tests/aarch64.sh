#!/usr/bin/env bash
# The core, its C++ tests and the goldens built for 64-bit Arm with Debian's cross compiler, and run by qemu's user mode:
#
#   apt-get install g++-aarch64-linux-gnu qemu-user && pip install . && bash tests/aarch64.sh [NAME]
#
# NAME: run only the tests whose name contains it. The emulated GPU is left out: it has nothing of Arm, and is slow here.
# Exit status 77 where a tool is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in aarch64-linux-gnu-g++ qemu-aarch64 cmake; do
    command -v "$tool" >/dev/null || { echo "skipped: $tool is not installed"; exit 77; }
done
cmake -S . -B build/aarch64 -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DMIMO_TESTS=ON -DMIMO_WERROR=ON >/dev/null
cmake --build build/aarch64 --parallel "$(nproc)" --target mimo_tests mimo_goldens
# every instruction set that qemu knows, the dot product of Orin's and Thor's processors among them
run="qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu"
$run build/aarch64/mimo_tests -device "$@"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 tests/golden_cases.py tests/goldens "$work/goldens"
for kernels in base dotprod; do $run build/aarch64/mimo_goldens "$work/goldens" $kernels; done

