"""Run the tests that need a GPU in a process that sees it. The other tests do not (conftest.py)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import VISIBLE_GPUS

GPUS = subprocess.run(["nvidia-smi", "-L"], capture_output=True).stdout if shutil.which("nvidia-smi") else b""


@pytest.mark.skipif(not GPUS, reason="needs a GPU")
@pytest.mark.parametrize("cases", ["gpu_cases.py", "triton_kernels.py"])
def test_on_a_gpu(cases):
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    if VISIBLE_GPUS is not None:
        environment["CUDA_VISIBLE_DEVICES"] = VISIBLE_GPUS
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{cases}"],
        cwd=Path(__file__).parents[1],
        env={**environment, "DENSECLIP_TESTS_SEE_GPUS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
