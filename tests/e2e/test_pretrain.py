"""Pretraining as users run it: repeats, processes, kills, damaged checkpoints."""

import os
import shutil
import signal
import subprocess
import time

import pytest

from megalite.distributed.beginning import PARTS
from megalite.training.folder.history import read_history
from tests.e2e.conftest import losses
from tests.forked import Forked


def test_the_loss_falls(whole):
    curve = losses(whole)
    assert len(curve) == 20
    assert sum(curve[-3:]) < 0.8 * sum(curve[:3])


def test_a_run_has_its_files(whole):
    for name in ("config.toml", "metrics.jsonl", "log.txt", "checkpoints/latest"):
        assert (whole / name).is_file(), name
    assert len(list((whole / "checkpoints").glob("step-*"))) == 2
    assert "step 1: the first of this start, " in (whole / "log.txt").read_text()
    (start,) = read_history(whole)
    assert tuple(start.first_step) == PARTS
    assert min(start.first_step[part] for part in ("imports", "data", "step")) > 0


def test_a_second_run_with_the_same_seed_is_equal_bit_for_bit(work, whole):
    run = work.new_run()
    work.pretrain(run)
    assert losses(run) == losses(whole)


def test_another_seed_gives_another_curve(work, whole):
    run = work.new_run()
    work.pretrain(run, "--run.seed", "1", "--train.steps", "2")
    assert losses(run)[:2] != losses(whole)[:2]


@pytest.mark.dist
def test_two_processes_give_the_losses_of_one(work, pair, whole):
    run = work.new_run()
    words = work.pretrain_words(run, "--parallel.tp", "2")
    pair.run(2, "tests.dist.stage_jobs:run_stage", words=words)
    assert losses(run) == pytest.approx(losses(whole), rel=1e-5)


def wait_for_steps(process: Forked, run, count: int) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if (run / "metrics.jsonl").exists() and len(losses_so_far(run)) >= count:
            return
        assert not process.has_ended(), process.wait().stderr
        time.sleep(0.01)
    raise AssertionError(f"no {count} steps within two minutes")


SLOWLY = ("--faults.kind", "slow", "--faults.phase", "data", "--faults.delay_s", "0.1")
SLOWLY += ("--faults.step", "3", "--faults.steps", "99")  # a signal meets it in its middle


def losses_so_far(run) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines()


def test_a_killed_run_goes_on_bit_for_bit(work, whole):
    run = work.new_run()
    process = work.start(work.pretrain_words(run, *SLOWLY))
    wait_for_steps(process, run, 7)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait().returncode == -signal.SIGKILL
    work.pretrain(run)
    assert losses(run) == losses(whole)


def test_a_stop_on_request_saves_and_says_so(work, whole):
    run = work.new_run()
    process = work.start(work.pretrain_words(run, *SLOWLY))
    wait_for_steps(process, run, 3)
    os.kill(process.pid, signal.SIGTERM)
    done = process.wait()
    assert done.returncode == 3
    assert "is saved" in done.stderr
    assert "Traceback" not in done.stderr
    done = work.pretrain(run)
    assert "resuming from" in done.stdout + done.stderr
    assert losses(run) == losses(whole)


def copy_of(work, whole):
    run = work.new_run()
    shutil.copytree(whole, run)
    return run


def newest_file(run):
    step = max((run / "checkpoints").glob("step-*"))
    return max(step.glob("*.distcp"), key=lambda path: path.stat().st_size)


def test_a_damaged_checkpoint_falls_back_aloud(work, whole):
    run = copy_of(work, whole)
    file = newest_file(run)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    done = work.pretrain(run)
    said = done.stdout + done.stderr
    assert file.name in said
    assert "falling back to the previous checkpoint" in said
    assert "step-00000015" in said
    assert losses(run) == losses(whole)


def test_no_whole_checkpoint_is_an_error_not_a_fresh_start(work, whole):
    run = copy_of(work, whole)
    for step in (run / "checkpoints").glob("step-*"):
        for file in step.glob("*.distcp"):
            file.write_bytes(file.read_bytes()[:-10])
    done = work.start(work.pretrain_words(run)).wait()
    assert done.returncode == 2
    assert "no checkpoint is intact" in done.stderr
    assert "Traceback" not in done.stderr
    assert losses(run) == losses(whole)


def test_a_checkpoint_of_another_model_is_refused(work, whole):
    run = copy_of(work, whole)
    done = work.start(work.pretrain_words(run, "--model.hidden_size", "64")).wait()
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "checkpoints/step-" in done.stderr


@pytest.mark.parametrize("fills", ["run", "run/tensorboard"])
def test_a_disk_that_is_full_of_metrics_does_not_end_the_run(fills, work, tmp_path):
    """On a small file system of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mounted, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        (disk / "ballast").write_bytes(bytes(64_000))
        (tmp_path / fills).parent.mkdir(exist_ok=True)
        (tmp_path / fills).symlink_to(disk)
        words = work.pretrain_words(tmp_path / "run")
        more = [
            "--checkpoint.every",
            "0",
            "--train.steps",
            "400",
            "--run.trackers",
            '["tensorboard"]',
        ]
        done = work.start([*words, *more]).wait()
        assert f"{tmp_path}/{fills}" in done.stdout
        assert "No space left on device: training goes on" in done.stdout
        assert "Traceback" not in done.stderr
        if fills == "run":
            assert done.returncode == 2, done.stderr[-2000:]
            assert "No space left on device; there is none: free some space" in done.stderr
        else:
            assert done.returncode == 0, done.stderr[-2000:]
            assert losses(tmp_path / "run")[399:]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_line_and_keeps_what_was_saved(work, whole):
    run = work.new_run()
    done = work.start(work.pretrain_words(run), file_bytes=100_000).wait()
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr or "space" in done.stderr
    assert not list((run / "checkpoints").glob("step-????????"))
    work.pretrain(run)
    assert losses(run) == losses(whole)
