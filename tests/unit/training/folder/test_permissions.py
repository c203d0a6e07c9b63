"""A folder that may not be written or read is found at the start, by the permission it lacks."""

import os
import pickle

import pytest
import torch

from megalite.distributed.launch import Launch
from megalite.errors import CheckpointError, DataError
from megalite.training.checkpoint.manager import CheckpointManager
from megalite.training.checkpoint.search import newest_facts
from megalite.training.folder.opening import RunFolder

NOBODY = 65534


def as_nobody(act) -> str:
    """What ``act`` raises in a process of a user with no rights."""
    ear, mouth = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setuid(NOBODY)
            try:
                act()
                said = ("nothing", "")
            except Exception as error:
                said = (type(error).__name__, str(error))
            os.write(mouth, pickle.dumps(said))
        finally:
            os._exit(0)
    os.close(mouth)
    with os.fdopen(ear, "rb") as file:
        kind, text = pickle.loads(file.read())
    os.waitpid(child, 0)
    return f"{kind}: {text}"


@pytest.fixture
def run(tmp_path):
    """A run's folder with two checkpoints, where everyone may look and write."""
    for folder in (tmp_path, *tmp_path.parents[:3]):  # pytest lets nobody else into its own
        if folder.stat().st_uid == os.getuid():
            folder.chmod(folder.stat().st_mode | 0o055)
    run = tmp_path / "run"
    manager = CheckpointManager(run / "checkpoints", asynchronous=False)
    for step in (1, 2, 3):
        manager.save(step, {"model.a": torch.ones(3)}, {"step": step})
    for path in (run, *run.rglob("*")):
        path.chmod(0o777)
    return run


def opened(run) -> None:
    folder = RunFolder(run, Launch())
    folder.open(lambda path: newest_facts(path / "checkpoints"))
    folder.release()


@pytest.mark.parametrize("name", [".", "checkpoints", "metrics.jsonl", "log.txt"])
def test_what_may_not_be_written_is_named_at_the_start(run, name):
    (run / "metrics.jsonl").touch()
    (run / "log.txt").touch()
    for path in (run / "metrics.jsonl", run / "log.txt"):
        path.chmod(0o666)
    assert as_nobody(lambda: opened(run)) == "nothing: "
    (run / name).chmod(0o555)
    if name == ".":
        (run / "checkpoints").rename(run.parent / "elsewhere")
    said = as_nobody(lambda: opened(run))
    assert (
        said == f"DataError: --run.folder {run}: {run / name} can't be written: Permission denied"
    )
    assert DataError.exit_code == 2


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/step-00000003", "manifest", "data"])
def test_a_newest_checkpoint_that_may_not_be_read_stops_the_run(run, name):
    """Falling back would throw its steps away, and none at all would begin anew."""
    newest = run / "checkpoints" / "step-00000003"
    inside = {"manifest": newest / "manifest.json", "data": next(newest.glob("*.distcp"))}
    path = inside.get(name, run / name)
    path.chmod(0)
    said = as_nobody(lambda: CheckpointManager(run / "checkpoints").latest())
    assert said.startswith(("CheckpointError: ", "UnreadableCheckpoint: "))
    assert str(path) in said
    assert "can't be read: Permission denied" in said
    path.chmod(0o777)
    assert CheckpointManager(run / "checkpoints").latest()[1] == {"step": 3}


def test_a_save_that_may_not_write_says_so_and_one_that_may_not_delete_goes_on(run):
    def save() -> None:
        manager = CheckpointManager(run / "checkpoints", asynchronous=False, say=said.append)
        manager.save(4, {"model.a": torch.ones(3)}, {"step": 4})
        raise CheckpointError("; ".join(said))

    said: list[str] = []
    (run / "checkpoints" / "step-00000002").chmod(0o555)
    left = as_nobody(save)
    assert "step-00000002: an old checkpoint stays: " in left
    assert "Permission denied" in left
    assert (run / "checkpoints" / "latest").read_text() == "step-00000004"
    (run / "checkpoints").chmod(0o555)
    refused = as_nobody(save)
    assert "could not be written" in refused
    assert "Permission denied; earlier ones are intact, up to step-00000004" in refused
    assert "get the permission to write there" in refused
