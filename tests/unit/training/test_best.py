"""The best of a run's evaluations: what is better, when the run ends, what a manifest has."""

import json
import math
import shutil

import pytest

from megalite.errors import ConfigError
from megalite.training.best import Best
from megalite.training.checkpoint.load import find_checkpoint
from tests.unit.training.runs import Run


def seen(best: Best, *values: float) -> list[bool]:
    return [best.see(step, value) for step, value in enumerate(values, best.step + best.since + 1)]


@pytest.mark.parametrize(
    ("metric", "better"),
    [
        ("heldout_loss", [True, False, True, False]),
        ("heldout_kl", [True, False, True, False]),
        ("heldout_calibration_error", [True, False, True, False]),
        ("heldout_self_bleu", [True, False, True, False]),
        ("heldout_rejected_reward", [True, False, True, False]),
        ("heldout_accuracy", [True, True, False, False]),
        ("heldout_reward", [True, True, False, False]),
    ],
)
def test_a_loss_is_better_lower_and_other_metrics_higher(metric: str, better: list[bool]):
    assert seen(Best(metric), 2.0, 3.0, 1.0, 2.0) == better


def test_what_is_no_number_and_what_is_equal_is_no_better():
    best = Best("heldout_loss", patience=3)
    assert seen(best, math.nan, 2.0, 2.0, math.nan, math.inf) == [False, True, False, False, False]
    assert (best.step, best.value, best.since) == (2, 2.0, 3)
    assert best.is_over
    assert best.why_over() == (
        "3 evaluations (train.patience) were no better than heldout_loss 2 of step 2"
    )


def test_a_run_that_goes_on_from_a_manifest_decides_as_one_that_was_not_stopped():
    values = [3.0, 2.5, 2.7, 2.6, 2.4, 2.9, 2.8, 2.5]
    whole, state = Best("heldout_loss", 3), {}
    for step, value in enumerate(values, 1):
        again = Best("heldout_loss", 3)
        again.restore(json.loads(json.dumps(state)))
        assert again.see(step, value) == whole.see(step, value)
        assert again.is_over == whole.is_over == (step == 8)
        state = again.facts()
    other = Best("heldout_accuracy", 3)
    other.restore(state)
    assert not other.step


def test_a_metric_that_no_evaluation_has_is_refused_with_those_that_are_there():
    with pytest.raises(ConfigError, match="must be a metric of the evaluations: heldout_loss, x"):
        Best("loss").of({"heldout_loss": 1.0, "x": 2.0})


def test_a_run_that_goes_on_with_a_metric_that_is_none_is_refused_before_a_step(tmp_path):
    run = Run(tmp_path)
    run.evaluate = lambda: {"heldout_loss": 1.0}
    run.go(2, evaluate_every=9)
    run.best = "loss"
    with pytest.raises(ConfigError, match="must be a metric of the evaluations: heldout_loss"):
        run.go(4, evaluate_every=9)
    assert len(run.rows) == 3


VALUES = {0: 9.0, 2: 3.0, 4: 2.5, 6: 2.7, 8: 2.6, 10: 2.8, 12: 2.4}


def last_step(run: Run) -> int:
    return json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]


def run_of(folder, steps: int, patience: int = 0) -> Run:
    """A run whose held-out loss is told by its step, evaluated at each second step."""
    run = Run(folder, every=5)
    run.keep, run.best, at = 2, "heldout_loss", [0]
    run.evaluate = lambda: {"heldout_loss": VALUES[at[0]]}

    def on_step(step, _learner):
        at[0] = step

    return run.go(steps, on_step, evaluate_every=2, patience=patience)


def test_the_best_checkpoint_is_kept_whatever_is_deleted_and_named_in_the_manifest(tmp_path):
    run_of(tmp_path, 10)
    steps = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert steps == ["step-00000004", "step-00000005", "step-00000010"]
    best = find_checkpoint(tmp_path / "checkpoints" / "best")
    assert best == tmp_path / "checkpoints" / "step-00000004"
    run = Run(tmp_path)
    assert run.manifest(10)["best"] == {
        "metric": "heldout_loss",
        "step": 4,
        "value": 2.5,
        "since": 3,
    }
    assert f"heldout_loss 2.5 of step 4, has its checkpoint in {tmp_path}" in run.log
    run_of(tmp_path, 12)
    steps = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert steps == ["step-00000010", "step-00000012"]


def test_a_run_that_gets_no_better_ends_also_when_it_is_stopped_and_goes_on(tmp_path):
    whole = run_of(tmp_path / "whole", 12, patience=3)
    assert "3 evaluations (train.patience) were no better than heldout_loss 2.5" in whole.log
    assert last_step(whole) == 10
    run_of(tmp_path / "run", 8)  # two evaluations after the best
    run = run_of(tmp_path / "run", 12, patience=3)
    assert last_step(run) == 10
    run_of(tmp_path / "run", 12, patience=3)
    assert f"{tmp_path}/run: is done: 3 evaluations" in run.log
    run_of(tmp_path / "run", 12, patience=4)
    assert run.manifest(12)["best"]["step"] == 12


def test_a_best_checkpoint_that_is_gone_is_said_and_forgotten(tmp_path):
    run_of(tmp_path, 6)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000004")
    run = run_of(tmp_path, 8)
    assert "best evaluation, heldout_loss 2.5 of step 4, is gone" in run.log
    assert run.manifest(8)["best"]["step"] == 8
