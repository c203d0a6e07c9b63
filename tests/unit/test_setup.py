"""What the build says where it can't do what is asked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def test_a_demand_for_cuda_that_cannot_be_met_is_one_line():
    if torch.version.cuda is not None:
        pytest.skip("a CUDA build of PyTorch may meet the demand")
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env=os.environ | {"MEGALITE_CUDA": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("MEGALITE_CUDA=1: nvcc and a CUDA build of PyTorch must be there")
    assert f"torch {torch.__version__}; install both, or unset it" in line
