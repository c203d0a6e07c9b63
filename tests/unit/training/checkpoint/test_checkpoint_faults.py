"""Checkpoints that are cut off, damaged, late or changed meanwhile: what is loaded is whole."""

import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from megalite.errors import CheckpointError
from megalite.training.checkpoint.load import load
from megalite.training.checkpoint.manager import CheckpointManager, Saving
from megalite.training.checkpoint.manifest import MANIFEST, verify
from megalite.training.watchdog.heartbeat import WRITE_POINTS, Heartbeat

quiet = {"say": lambda _text: None}


def state(step: int) -> dict[str, torch.Tensor]:
    """Tensors that only this step has."""
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(300, 40, generator=generator) for name in ("model.a", "model.b")}


def save(folder: Path, *steps: int, **options) -> CheckpointManager:
    manager = CheckpointManager(folder, asynchronous=False, **quiet, **options)
    for step in steps:
        manager.save(step, state(step), {"step": step})
    return manager


def loaded_step(folder: Path) -> int | None:
    """The step that a run would go on from; its tensors are those of that step."""
    found = CheckpointManager(folder, **quiet).latest()
    if found is None:
        return None
    path, facts = found
    tensors = {name: torch.zeros_like(value) for name, value in state(0).items()}
    load(path, tensors)
    assert all(torch.equal(tensors[name], value) for name, value in state(facts["step"]).items())
    return facts["step"]


def steps_of(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in sorted(folder.glob("step-????????"))]


def saves_until_killed(folder: Path, asynchronous: bool) -> None:
    """A child that goes on from what there is, and saves as fast as it can."""
    first = (loaded_step(folder) or 0) + 1
    manager = CheckpointManager(folder, asynchronous=asynchronous, **quiet)
    for step in range(first, first + 10_000):
        manager.save(step, state(step), {"step": step})
        (folder / "begun.partial").write_text(str(step))
        (folder / "begun.partial").rename(folder / "begun")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_kill_at_any_moment_leaves_the_last_complete_step(tmp_path, asynchronous: bool):
    """Twenty real kills in one folder; each next start goes on from the newest whole step."""
    generator, reached = random.Random(3), 0
    started = time.monotonic()
    save(tmp_path / "timed", 1)
    most_s = max(0.25, 3 * (time.monotonic() - started))
    for _ in range(20):
        child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(1)
                saves_until_killed(tmp_path, asynchronous)
            finally:
                os._exit(1)
        time.sleep(generator.uniform(0.02, most_s))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        step = loaded_step(tmp_path)
        if step is not None:
            begun = int((tmp_path / "begun").read_text()) if (tmp_path / "begun").exists() else 0
            assert step >= max(reached, begun - 1 if asynchronous else begun)
            reached = step
        else:
            assert reached == 0
    assert reached > 0  # how far is the machine's affair


class Held(Heartbeat):
    """A writer that waits at a point until it is let go."""

    def __init__(self, point: str) -> None:
        super().__init__(self._hold)
        self.point, self.there, self.go = point, threading.Event(), threading.Event()

    def _hold(self, point: str, _step: int, _model) -> None:
        if point == self.point:
            self.there.set()
            assert self.go.wait(30)


@pytest.mark.parametrize("point", WRITE_POINTS)
def test_a_flush_under_way_moves_and_deletes_nothing_before_its_time(tmp_path, point: str):
    save(tmp_path, 1, 2)
    held = Held(point)
    manager = CheckpointManager(tmp_path, saving=Saving(held), **quiet)
    manager.save(3, state(3), {"step": 3})
    assert held.there.wait(30)
    is_named = WRITE_POINTS.index(point) > WRITE_POINTS.index("rename")
    latest = (tmp_path / "latest").read_text()
    assert latest == ("step-00000003" if point == "delete_old" else "step-00000002")
    assert loaded_step(tmp_path) == (3 if is_named else 2)
    assert steps_of(tmp_path) == [1, 2, 3] if is_named else [1, 2]
    held.go.set()
    manager.wait()
    assert steps_of(tmp_path) == [2, 3]


def test_tensors_may_change_while_they_are_written(tmp_path):
    held = Held("write_data")
    manager = CheckpointManager(tmp_path, saving=Saving(held), **quiet)
    tensors = state(5)
    manager.save(5, tensors, {"step": 5})
    assert held.there.wait(30)
    for tensor in tensors.values():
        tensor.zero_()
    held.go.set()
    manager.wait()
    assert loaded_step(tmp_path) == 5


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


DAMAGES = {
    "a flipped bit": (flip, "checksum"),
    "cut short": (lambda file: file.write_bytes(file.read_bytes()[:-7]), "bytes"),
    "missing": (Path.unlink, "is missing"),
    "of the step before": (
        lambda file: shutil.copy(file.parent.parent / "step-00000001" / file.name, file),
        "checksum",
    ),
    "empty": (lambda file: file.write_bytes(b""), "bytes"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("pattern", ["*.distcp", ".metadata", MANIFEST])
def test_a_damaged_file_is_named_and_the_step_before_is_taken(tmp_path, pattern: str, damage: str):
    act, says = DAMAGES[damage]
    save(tmp_path, 1, 2)
    (file,) = (tmp_path / "step-00000002").glob(pattern)
    was = file.read_bytes()
    act(file)
    if file.exists() and file.read_bytes() == was:
        pytest.skip("both steps have equal metadata, which is no damage")
    if pattern == MANIFEST and damage != "of the step before":
        says = "manifest.json"
    if pattern == MANIFEST and damage == "a flipped bit":
        says = ""  # of a checksum, or of JSON itself
    with pytest.raises(CheckpointError, match=says):
        verify(tmp_path / "step-00000002")
    assert loaded_step(tmp_path) == 1


def test_a_save_after_going_back_outlives_the_damaged_ones(tmp_path):
    """Steps that the run went back from don't count among those to keep."""
    save(tmp_path, 10, 20, 30, keep=3)
    for step in (20, 30):
        flip(next((tmp_path / f"step-000000{step}").glob("*.distcp")))
    assert loaded_step(tmp_path) == 10
    save(tmp_path, 15)
    assert loaded_step(tmp_path) == 15
    assert steps_of(tmp_path) == [10, 15]


def test_a_failed_save_tells_and_leaves_what_there_was(tmp_path):
    manager = save(tmp_path, 1, 2)
    (tmp_path / "step-00000003.partial").write_text("a file where a folder must be")
    manager.folder.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            (tmp_path / "step-00000003.partial").unlink()
            (tmp_path / "latest.partial").mkdir()  # root may write anywhere
        with pytest.raises(CheckpointError, match="earlier ones are intact"):
            manager.save(3, state(3), {"step": 3})
    finally:
        manager.folder.chmod(0o700)
    assert loaded_step(tmp_path) in (2, 3)


def test_what_was_cut_off_is_removed_where_a_complete_step_stays(tmp_path):
    """A save and a deletion that were killed, at other steps than any to come."""
    manager = save(tmp_path, 2, 4)
    (tmp_path / "step-00000003.partial").mkdir()
    (tmp_path / "step-00000003.partial" / "__0_0.distcp").write_bytes(b"half")
    (tmp_path / "latest.partial").write_text("step-0")
    (tmp_path / "step-00000001").mkdir()
    shutil.copytree(tmp_path / "step-00000002", tmp_path / "step-00000000")
    (tmp_path / "step-00000000" / MANIFEST).unlink()
    (tmp_path / "notes.txt").touch()
    manager.tidy()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["latest", "notes.txt", "step-00000002", "step-00000004"]
    assert loaded_step(tmp_path) == 4


def test_a_step_without_a_manifest_stays_where_nothing_is_complete(tmp_path):
    """Somebody may want its tensors; an empty folder is nothing."""
    manager = save(tmp_path, 2)
    (tmp_path / "step-00000002" / MANIFEST).unlink()
    (tmp_path / "step-00000009").mkdir()
    manager.tidy()
    assert steps_of(tmp_path) == [2]
    (tmp_path / "step-00000009").mkdir()
    shutil.rmtree(tmp_path / "step-00000002")
    assert loaded_step(tmp_path) is None


def test_a_deletion_takes_the_manifest_first(tmp_path):
    """So what is left of one that is killed is no checkpoint."""
    manager = save(tmp_path, 1, 2)
    old = tmp_path / "step-00000001"
    (old / "deep").mkdir()
    (old / "deep" / "file").touch()
    kept = shutil.rmtree
    seen: list[bool] = []

    def watch(path: Path, *rest, **options) -> None:
        if path == old:
            seen.append((old / MANIFEST).exists())
        kept(path, *rest, **options)

    shutil.rmtree = watch
    try:
        manager.save(3, state(3), {"step": 3})
    finally:
        shutil.rmtree = kept
    assert seen == [False]
    assert steps_of(tmp_path) == [2, 3]
