"""The CUDA kernels compile without a warning, and fit: registers, stack and spills of each, as ptxas reports them.

Where nvcc is not installed these tests are skipped; nothing else of the project needs it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NVCC = shutil.which("nvcc", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
MOST_REGISTERS = 128  # 65536 of a multiprocessor / 512 threads of a block
MOST_SPILLED_BYTES = 400  # at the entry of a called function, once a job; in a loop it would be far more
ORIN = "sm_87"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What ptxas says of every kernel, compiled as CMakeLists.txt compiles them."""
    if NVCC is None:
        pytest.skip("nvcc is not installed")
    out = tmp_path_factory.mktemp("cuda") / "runtime.o"
    words = "-std=c++20 -O3 -fmad=false --expt-relaxed-constexpr -Xptxas=-v -Werror=all-warnings"
    command = [
        NVCC,
        *words.split(),
        f"-arch={ORIN}",
        "-Xcompiler=-Wall,-Wextra",
        "-I",
        "csrc",
        "-I",
        "csrc/cuda/real",
        "-c",
        "-o",
        str(out),
    ]
    done = subprocess.run(
        [*command, "csrc/cuda/real/runtime.cu"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_kernels_fit_the_registers(report: str) -> None:
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", report)]
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill stores", report)]
    print(f"registers of the kernels: {registers}; bytes spilled by each function: {spilled}")
    assert len(registers) == 3  # the list of jobs, rvq_encode, rvq_decode
    assert max(registers) <= MOST_REGISTERS
    assert max(spilled) <= MOST_SPILLED_BYTES


def test_a_build_without_cuda_says_so(tmp_path: Path) -> None:
    import mimo_edge

    with pytest.raises(mimo_edge.DeviceError, match=r"cuda: expected .*, got "):
        mimo_edge.load(device="cuda:99")
    with pytest.raises(mimo_edge.InputError, match="expected the device cpu, cuda or cuda:INDEX, got 'gpu'"):
        mimo_edge.load(device="gpu")
