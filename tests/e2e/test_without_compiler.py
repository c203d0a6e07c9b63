"""The package as it is installed without a C++ compiler: no extensions, PyTorch computes."""

import shutil
import subprocess
import sys

import pytest

from tests.e2e.conftest import ROOT, environment, losses


def test_a_package_without_extensions_has_the_same_curve_and_says_so_once(work, whole, tmp_path):
    unbuilt = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "megalite", tmp_path / "megalite", ignore=unbuilt)
    run = work.new_run()
    done = subprocess.run(
        [sys.executable, "-m", "megalite", *work.pretrain_words(run, "--train.steps", "5")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(tmp_path)},
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("megalite: installed without compiled operators") == 1
    assert losses(run)[0] == pytest.approx(losses(whole)[0], rel=1e-6)
