"""Local checkpoints of a run of one process: what it goes on from, and what a kill leaves."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from megalite.errors import ConfigError
from megalite.training.checkpoint.local.checkpoints import LocalCheckpoints, Place
from megalite.training.checkpoint.manager import Saving
from megalite.training.config import CheckpointConfig, TrainConfig
from megalite.training.folder.local_name import local_name
from megalite.training.local_saves import LocalSaves
from megalite.training.trainer import Trainer
from megalite.training.watchdog.heartbeat import LOCAL_POINTS, Heartbeat
from tests.unit.training.runs import Run


class LocalRun(Run):
    """A run that saves every four steps on a disk of its node, and every ten where all see it."""

    def trainer(self, train: TrainConfig) -> Trainer:
        trainer, name = super().trainer(train), local_name(self.folder)
        disk, self.came = self.folder.parent / "disk", []
        self.disk = disk / name
        self.local = LocalCheckpoints(disk, name, Place(), Saving(), trainer._log.say)
        trainer.save_locally(LocalSaves(self.local, 4, self.came.append))
        self.shared = trainer._checkpoints
        return trainer

    def fail_in(self, step: int) -> "LocalRun":
        """A start that fails in a step; each save is whole before the next step, so none is left
        out because a slow disk still writes the one before."""

        def fail(now: int, _learner) -> None:
            self.local.wait()
            self.shared.wait()
            if now == step:
                raise RuntimeError("a fault")

        with pytest.raises(RuntimeError, match="a fault"):
            self.go(30, fail)
        return self


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("clean") / "run").go(30).rows


def test_a_start_goes_on_from_the_newest_of_both_kinds_with_the_clean_curve(tmp_path, clean):
    run = LocalRun(tmp_path / "run").fail_in(18)
    assert sorted(path.name for path in run.disk.iterdir()) == ["step-00000016"]
    run.fail_in(22)  # step 20 is saved where all see it, not on the node
    run.go(30)
    assert "step-00000016" in run.log
    assert "checkpoints/step-00000020" in run.log
    assert run.came == [20]
    assert run.rows == clean
    assert not run.disk.exists()  # the last shared one is as new


def test_a_damaged_local_one_is_told_and_the_shared_one_taken(tmp_path, clean):
    run = LocalRun(tmp_path / "run").fail_in(18)
    file = run.disk / "step-00000016" / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    run.go(30)
    assert "local checkpoint of step 16: " in run.log
    assert "resuming from" in run.log
    assert run.came == [10]
    assert run.rows == clean


def test_where_all_local_ones_are_lost_the_shared_one_is_taken_and_that_is_told(tmp_path, clean):
    run = LocalRun(tmp_path / "run").fail_in(18)
    shutil.rmtree(run.disk)
    run.go(30)
    assert "the nodes have no whole local checkpoint later than step 10" in run.log
    assert run.came == [10]
    assert run.rows == clean


def test_a_run_that_begins_anew_in_the_folder_takes_nothing_of_the_one_before(tmp_path, clean):
    run = LocalRun(tmp_path / "run").fail_in(9)
    before = run.disk
    assert before.exists()
    for path in sorted(run.folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    run.go(30)
    assert run.came == [0]
    assert run.rows == clean
    assert not before.exists()


def test_a_full_disk_is_told_and_the_run_goes_on(tmp_path, clean):
    run = LocalRun(tmp_path / "run")

    def block(step: int, _learner) -> None:
        if step == 4:
            (run.disk / "step-00000004").write_text("a file where a folder must be")

    run.go(30, block)
    assert run.log.count("a local checkpoint could not be written") == 1
    assert run.rows == clean


def test_a_local_interval_that_is_no_shorter_is_refused():
    with pytest.raises(ConfigError, match="every 10: must be less than checkpoint.every"):
        CheckpointConfig(every=10, local={"folder": "disk"})
    CheckpointConfig(every=0, local={"folder": "disk"})
    CheckpointConfig(every=5)


def state(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(300, 40, generator=generator) for name in ("a", "b")}


def opened(disk: Path, heartbeat: Heartbeat | None = None) -> LocalCheckpoints:
    saving = Saving(heartbeat or Heartbeat())
    return LocalCheckpoints(disk, "run-1", Place(), saving, lambda _text: None)


def found_step(disk: Path) -> int:
    """The step that a start goes on from; its tensors are those of that step."""
    local, tensors = opened(disk), {name: torch.zeros(300, 40) for name in ("a", "b")}
    found = local.newest(-1, tensors, lambda _facts: "")
    if found is None:
        return 0
    local.load(tensors)
    step = found[1]["step"]
    assert all(torch.equal(tensors[name], value) for name, value in state(step).items())
    return step


def killed(disk: Path, first: int, heartbeat: Heartbeat | None, after_s: float) -> None:
    """A child that saves step after step until it is killed."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            local = opened(disk, heartbeat)
            for step in range(first, first + 10_000):
                local.save(step, state(step), {"step": step})
                local.wait()
                (disk / "done.new").write_text(str(step))
                (disk / "done.new").rename(disk / "done")
        finally:
            os._exit(1)
    time.sleep(after_s)
    if heartbeat is None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("point", LOCAL_POINTS)
def test_a_kill_at_each_point_leaves_a_whole_one(tmp_path, point):
    def kill(at: str, step: int, _model) -> None:
        if (at, step) == (point, 3):
            os.kill(os.getpid(), signal.SIGKILL)

    killed(tmp_path, 1, Heartbeat(kill), 0.0)
    assert found_step(tmp_path) == (2 if point in ("local_data", "local_manifest") else 3)


def test_kills_at_any_moment_lose_nothing_that_was_whole(tmp_path):
    generator, reached = random.Random(5), 0
    local, started = opened(tmp_path / "timed"), time.monotonic()
    local.save(1, state(1), {"step": 1})
    local.wait()
    most_s = max(0.2, 3 * (time.monotonic() - started))
    for _ in range(10):
        killed(tmp_path, reached + 1, None, generator.uniform(0.02, most_s))
        done = int((tmp_path / "done").read_text()) if (tmp_path / "done").exists() else 0
        reached = found_step(tmp_path)
        assert reached >= done
    assert reached > 0
