"""Spikes are found against the steps before; a run that goes back is one that was told to skip."""

import math
import random
import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from megalite.errors import CheckpointError, MegaliteError
from megalite.tools.report.page import ReportConfig, page
from megalite.training import rollback
from megalite.training.learner import Learner
from megalite.training.spikes import SpikeConfig, SpikeDetector
from tests.unit.training.runs import BATCH, Run, Texts

SPIKE = 36  # step whose samples are noise
BAD = range((SPIKE - 1) * BATCH, SPIKE * BATCH)
AROUND = {"policy": "rollback", "around": 3, "window": 40 * BATCH}
SKIPPED = (BAD.start - 3, BAD.stop + 3)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products on threads take far longer beside other programs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def detector(**more) -> SpikeDetector:
    return SpikeDetector(SpikeConfig(**more), batch=8)


NOISES = {
    "even": lambda g: g.gauss(3, 0.1),
    "hardly any": lambda g: 3 + 1e-6 * g.random(),
    "heavy tail": lambda g: 0.05 * math.exp(1.2 * g.gauss(0, 1)),
    "two sources": lambda g: g.gauss(1, 0.05) if g.random() < 0.8 else g.gauss(3, 0.1),
}


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("seed", range(4))
def test_noise_and_a_falling_curve_are_no_spikes(noise: str, seed: int):
    generator, watch = random.Random(seed), detector()
    for step in range(600):
        value = NOISES[noise](generator) * (1 + 3 * math.exp(-step / 100))
        assert watch.see(step, {"loss": value, "grad_norm": abs(value)}) == []


@pytest.mark.parametrize("metric", ["loss", "grad_norm"])
def test_a_spike_is_named_with_its_bound_and_does_not_move_it(metric: str):
    generator, watch = random.Random(0), detector()
    for step in range(100):
        assert watch.see(step, {metric: generator.gauss(2.2, 0.05)}) == []
    for step in range(100, 104):
        (spike,) = watch.see(step, {metric: 960.0 if metric == "grad_norm" else 5.1})
        assert (spike.step, spike.metric) == (step, metric)
        assert 2.4 < spike.bound < 9
        assert f"step {step}: a spike: {metric} " in str(spike)


def test_nothing_is_a_spike_in_the_first_steps_and_where_numbers_are_not_finite():
    watch = detector()
    for step in range(63):
        assert watch.see(step, {"loss": 100.0 if step % 9 == 8 else 1.0}) == []
    for step in range(63, 200):
        watch.see(step, {"loss": 1.0})
    assert watch.see(200, {"loss": math.nan, "grad_norm": math.inf}) == []
    assert len(watch.see(201, {"loss": 9.0})) == 1
    zeros = detector()
    for step in range(200):
        zeros.see(step, {"loss": float(step % 2), "grad_norm": 0.0})
    assert detector(policy="off").see(300, {"loss": 1e9}) == []


def test_the_window_is_counted_in_samples_and_survives_a_restart_with_another_batch():
    watch = detector(window=40 * 8)
    for step in range(300):
        watch.see(step, {"loss": 1.0 + step % 2})
    assert len(watch.facts()["loss"]) == 40
    other = SpikeDetector(SpikeConfig(window=40 * 8), batch=80)
    other.restore(watch.facts())
    for step in range(8):
        assert other.see(step, {"loss": 1.5}) == []
    assert len(other.facts()["loss"]) == 32  # few large batches; a median needs some steps
    assert other.see(9, {"loss": 2000.0})


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> Run:
    """A run that was told from the start what the other goes back to leave out."""
    return Run(tmp_path_factory.mktemp("told"), Texts(BAD)).go(40, skip=(SKIPPED,))


def test_a_run_that_goes_back_has_the_curve_of_one_that_was_told_to_skip(tmp_path, told):
    assert not [
        place for places in told.seen for place in places if SKIPPED[0] <= place < SKIPPED[1]
    ]
    run = Run(tmp_path, Texts(BAD)).go(40, spikes=AROUND)
    assert run.rows == told.rows
    assert f"step {SPIKE}: a spike: loss" in run.log
    words = f"samples {SKIPPED[0]}-{SKIPPED[1] - 1} of the run's order"
    assert f"step {SPIKE}: going back before the spike; {words} are never learned" in run.log
    assert run.manifest(40)["skipped"] == [list(SKIPPED)]
    assert f'<td class="number">{SPIKE}</td><td>{SKIPPED[0]}-' in page(
        ReportConfig(runs=(str(tmp_path),))
    )
    again = Run(tmp_path, Texts(BAD)).go(42, spikes=AROUND)
    assert again.rows == told.go(42, skip=(SKIPPED,)).rows


class Killed(BaseException):
    """The process is gone."""


def kill_in(step: int, nth: int = 1) -> Callable[[int, Learner], None]:
    """Killed in a step, when that comes for the ``nth`` time."""
    passes = []

    def on_step(number: int, _learner: Learner) -> None:
        passes.append(number)
        if number == step and passes.count(step) == nth:
            raise Killed

    return on_step


@pytest.mark.parametrize(("step", "nth"), [(31, 2), (39, 1)])
def test_a_run_that_is_killed_after_it_went_back_still_skips(tmp_path, told, step: int, nth: int):
    run = Run(tmp_path, Texts(BAD))
    with pytest.raises(Killed):
        run.go(40, kill_in(step, nth), spikes=AROUND)
    assert run.go(40, spikes=AROUND).rows == told.rows[:40]


def test_a_run_goes_back_as_often_as_it_may_and_only_where_it_can(tmp_path):
    with pytest.raises(MegaliteError, match="went back 0 times, the most that train.spikes.limit"):
        Run(tmp_path / "a", Texts(BAD)).go(40, spikes={**AROUND, "limit": 0})
    run = Run(tmp_path / "b", Texts(BAD), every=0).go(40, spikes=AROUND)
    assert f"step {SPIKE}: no checkpoint is from before the spike: going on" in run.log
    assert run.rows == Run(tmp_path / "c", Texts(BAD), every=0).go(40).rows  # as with a warning


def flip(run: Run, step: int) -> None:
    """Change a byte in the middle of a checkpoint's tensors."""
    file = run.folder / f"checkpoints/step-{step:08}/__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def damaging(run: Run, *steps: int) -> Callable[[int, Learner], None]:
    """Damage the checkpoints of these steps in the step of the spike, once."""
    left = list(steps)

    def on_step(number: int, _learner: Learner) -> None:
        while number == SPIKE and left:
            flip(run, left.pop())

    return on_step


def test_a_run_goes_back_to_the_newest_whole_checkpoint_before_a_spike(tmp_path, told):
    run = Run(tmp_path, Texts(BAD))
    assert run.go(40, damaging(run, 30), spikes=AROUND).rows == told.rows[:40]
    assert "step-00000030" in run.log
    assert "step-00000020" in run.log.split("resuming from")[1]


def test_a_run_without_a_whole_checkpoint_before_a_spike_decides_nothing_and_goes_on(tmp_path):
    run = Run(tmp_path, Texts(BAD))
    run.go(40, damaging(run, 30, 20, 10), spikes=AROUND)
    assert f"step {SPIKE}: no checkpoint is from before the spike: going on" in run.log
    assert "step-00000030/__0_0.distcp: its checksum doesn't match" in run.log
    assert not (tmp_path / "skipped.json").exists()
    again = run.go(42, spikes=AROUND)  # from step 40, as nothing is skipped
    assert "step-00000040" in again.log.split("resuming from")[1]


def test_a_run_that_is_told_to_skip_what_it_has_learned_goes_back(tmp_path):
    run = Run(tmp_path / "run", Texts(BAD))
    with pytest.raises(Killed):
        run.go(42, kill_in(42))
    told = Run(tmp_path / "told", Texts(BAD)).go(42, skip=(SKIPPED,))
    assert run.go(42, skip=(SKIPPED,)).rows == told.rows
    assert "step-00000030" in run.log.split("resuming from")[1]
    assert "step-00000040: it has learned samples that the run skips" in run.log
    with pytest.raises(
        CheckpointError, match="no checkpoint can be taken.*run skips.*out of --train.skip"
    ):
        run.go(43, skip=((0, 4),))


def test_a_spike_that_is_skipped_changes_nothing_in_one_go_or_two(tmp_path):
    weights, skip = {}, {"policy": "skip", "window": 40 * BATCH}

    def note(step: int, learner: Learner) -> None:
        weights[step] = [value.clone() for value in learner.tensors().values()]

    run = Run(tmp_path / "run", Texts(BAD)).go(40, note, spikes=skip)
    changed = [
        step
        for step in range(1, 40)
        if any(not torch.equal(a, b) for a, b in zip(weights[step], weights[step + 1], strict=True))
    ]
    assert changed == [step for step in range(1, 40) if step != SPIKE]
    assert f"step {SPIKE}: its update is dropped: the parameters stay (1 of at most 10)" in run.log
    assert run.rows[SPIKE - 1]["loss"] > 3
    again = Run(tmp_path / "again", Texts(BAD))
    with pytest.raises(Killed):
        again.go(40, kill_in(34), spikes=skip)
    assert again.go(40, spikes=skip).rows == run.rows
    with pytest.raises(MegaliteError, match="0 steps were dropped for one, the most that"):
        Run(tmp_path / "none", Texts(BAD)).go(40, spikes={**skip, "limit": 0})


def test_a_list_that_cant_be_written_is_tried_again_and_then_ends_the_run(
    tmp_path, told, monkeypatch
):
    monkeypatch.setattr(rollback, "LAST_PAUSES_S", (0.3, 0.3))
    blocked, run = tmp_path / "skipped.json.partial", Run(tmp_path, Texts(BAD))
    blocked.mkdir()
    with pytest.raises(CheckpointError, match=r"skipped\.json: can't be written: Is a directory"):
        run.go(40, spikes=AROUND)
    freed = threading.Timer(0.1, blocked.rmdir)

    def free(step: int, _learner: Learner) -> None:
        if step == SPIKE and blocked.exists():
            freed.start()

    assert run.go(40, free, spikes=AROUND).rows == told.rows[:40]
    freed.join()


def test_a_damaged_list_is_named(tmp_path):
    run = Run(tmp_path).go(2)
    (tmp_path / "skipped.json").write_text('[{"first": 3}]')
    with pytest.raises(CheckpointError, match=r"skipped\.json: is damaged: it must be a list"):
        run.go(4)
