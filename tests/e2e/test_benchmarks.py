"""The benchmarks that clusters run, on two processes of this machine."""

import json
import subprocess
import sys

import pytest

from tests.e2e.conftest import ROOT, environment

pytestmark = pytest.mark.dist

TINY = ["--model.num_layers", "2", "--model.hidden_size", "32", "--model.num_heads", "4"]
TINY += ["--model.num_kv_heads", "4", "--model.ffn_size", "48", "--data.sequence_length", "16"]
TINY += ["--train.global_batch_size", "8", "--train.micro_batch_size", "2", "--run.device", "cpu"]


def results(*words: str, timeout_s: float) -> list[dict]:
    """What a benchmark that succeeds prints with ``--json``, a result a line.

    Gloo says on standard output, in some releases, whom it is connected to.
    """
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_mfu_says_all_its_figures_of_a_pipeline():
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    words = ["benchmarks.mfu", *TINY, "--parallel.pp", "2", "--steps", "2", "--json"]
    *_, row = results(*launcher, *words, timeout_s=200)
    check_mfu(row, "send")
    assert row["bubble_theory"] == pytest.approx(1 / 5)
    assert 0 < row["bubble"] < 1


def test_mfu_says_all_its_figures_of_sharded_parameters(pair):
    words = ["configs/small.toml", *TINY, "--parallel.shard", "2"]
    row, _ = pair.run(2, "benchmarks.mfu:measured", words=words, steps=2)
    check_mfu(row, "_reduce_scatter_base_")
    assert "bubble" not in row


def check_mfu(row: dict, calls: str) -> None:
    assert row["case"] == "mfu configs/small.toml"
    assert 0 < row["mfu"] < row["hfu"] < 1
    assert row["tokens_per_s"] == pytest.approx(8 * 16 / row["ours_s"])
    assert row["tflops_per_gpu"] > 0
    assert row["memory_gib"] > 0
    assert row["communication_share"] == pytest.approx(row["communication_s"] / row["ours_s"])
    assert row["communication"][calls]["mib"] > 0


def test_random_faults_leave_the_curve_as_it_is():
    """Seed 71: a stopped rank of a pipeline."""
    words = ["benchmarks.fault_trials", "--seed", "71", "--trials", "1", "--timeout_s", "10"]
    *trials, summary = results(*words, "--json", timeout_s=400)
    assert [(t["layout"], t["kind"]) for t in trials] == [("pp2", "stop")]
    assert [t["faults"] for t in trials] == [[]]
    assert summary == {"trials": 1, "happened": 1, "failed": 0}
