#!/usr/bin/env bash
# The core and its C++ tests built for 64-bit Arm with Debian's cross compiler, and run by qemu's user mode:
#
#   apt-get install g++-aarch64-linux-gnu qemu-user && bash tests/aarch64.sh [NAME]
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
cmake --build build/aarch64 --parallel "$(nproc)" --target mimo_tests
# every instruction set that qemu knows, the dot product of Orin's and Thor's processors among them
qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu build/aarch64/mimo_tests -device "$@"
