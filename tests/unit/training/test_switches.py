"""What a run is asked by files, its clock and signals; saves that fail do not end it."""

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megalite.distributed.stop import StopRequest
from megalite.errors import SaveFailed, Stopped
from megalite.training.checkpoint import retry
from megalite.training.folder import switches
from megalite.training.learner import Learner
from tests.unit.training.runs import Run


@pytest.fixture(autouse=True)
def at_once(monkeypatch) -> Iterator[None]:
    """Look at every step; one thread, as others slow tiny products down."""
    monkeypatch.setattr(switches, "INTERVAL_S", 0.0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Run:
    return Run(tmp_path_factory.mktemp("clean"), every=0).go(14)


def saved(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-????????"))


def test_a_file_saves_and_another_ends_the_run_once(tmp_path, clean):
    def on_step(step: int, _learner: Learner) -> None:
        if step in (3, 9):
            (tmp_path / ("save" if step == 3 else "stop")).touch()

    run = Run(tmp_path, every=0)
    with pytest.raises(Stopped, match="step 9 is saved") as stopped:
        run.go(14, on_step)
    assert stopped.value.is_for_good
    assert saved(tmp_path) == [3, 9]
    assert not (tmp_path / "save").exists()
    assert not (tmp_path / "stop").exists()
    assert run.go(14).rows == clean.rows


def test_a_run_ends_when_its_time_is_over(tmp_path):
    run = Run(tmp_path, every=0)
    with pytest.raises(Stopped, match="step 1 is saved") as stopped:
        run.go(14, most_minutes=1e-9)
    assert stopped.value.is_for_good
    assert run.go(2, most_minutes=60.0).rows[-1]["step"] == 2


def test_a_signal_saves_and_the_run_goes_on(tmp_path, clean):
    run, request = Run(tmp_path, every=0), StopRequest()
    run.stop = request

    def on_step(step: int, _learner: Learner) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.getsignal(signal.SIGUSR1)
    with request.caught():
        assert run.go(14, on_step).rows == clean.rows
    assert signal.getsignal(signal.SIGUSR1) is before
    assert saved(tmp_path) == [5, 14]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_training_goes_on_when_a_save_fails_and_tries_again(tmp_path, clean, asynchronous: bool):
    """The system writes no file longer than a limit; the same error as a full disk's."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_step(step: int, _learner: Learner) -> None:
        if step in (4, 9):
            most = 4000 if step == 4 else limits[0]
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))

    run = Run(tmp_path, every=4, asynchronous=asynchronous)
    try:
        assert run.go(14, on_step).rows == clean.rows
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "a checkpoint could not be written: " in run.log
    assert "there is none: free some space: training goes on, and the next try is" in run.log
    assert saved(tmp_path)[-1] == 14
    assert min(saved(tmp_path)) >= 8  # what failed left nothing that looks like a checkpoint
    assert not list((tmp_path / "checkpoints").glob("*.partial"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_checkpoint_waits_for_the_lines_of_its_steps(tmp_path, clean):
    """A start that goes on from it would leave a hole in the curve."""
    metrics, kept = tmp_path / "metrics.jsonl", tmp_path / "kept"

    def on_step(step: int, _learner: Learner) -> None:
        if step == 3:
            metrics.rename(kept)
            metrics.symlink_to("/dev/full")
        if step == 9:
            kept.replace(metrics)

    run = Run(tmp_path, every=4, asynchronous=False)
    assert run.go(14, on_step).rows == clean.rows
    assert run.log.count(f"could not be written: {metrics}: can't be written: No space left") == 2
    assert min(saved(tmp_path)) > 8


def test_the_last_save_is_tried_again_and_then_told(tmp_path, monkeypatch):
    monkeypatch.setattr("megalite.training.trainer.LAST_PAUSES_S", (0.0, 0.0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_step(step: int, _learner: Learner) -> None:
        if step == 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))

    run = Run(tmp_path, every=6, asynchronous=False)
    try:
        with pytest.raises(SaveFailed, match="are intact, up to step-00000006: free some space"):
            run.go(8, on_step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert run.log.count("the next try is in 0 s") == 2
    assert saved(tmp_path) == [6]
    assert run.go(8).rows[-1]["step"] == 8


def test_tries_come_later_and_later_until_one_works():
    tries = retry.Retry()
    assert [tries.failed(100 * n) for n in range(1, 10)][:3] == [110, 220, 340]
    assert tries.failed(5000) == 6000
    tries.worked()
    assert tries.step == 0
    assert tries.failed(7000) == 7010
