"""Checkpoints of one process: what is whole, what is damaged, and what is kept."""

import json
import random
import shutil

import pytest
import torch

from megalite.errors import CheckpointError
from megalite.training.checkpoint.load import find_checkpoint, load
from megalite.training.checkpoint.manager import CheckpointManager
from megalite.training.checkpoint.manifest import verify

FACTS = {"step": 3, "consumed_samples": 24, "extra": {"kl_coefficient": 0.1 + 0.2}, "learners": {}}


def tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"model.a": torch.full((5, 3), value), "model.b": torch.arange(7.0) * value}


def saved(folder, steps=(3,), **options) -> CheckpointManager:
    manager = CheckpointManager(folder, **options)
    for step in steps:
        manager.save(step, tensors(step), FACTS | {"step": step})
    manager.wait()
    return manager


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_is_saved_is_loaded(tmp_path, asynchronous):
    manager = saved(tmp_path, (3,), asynchronous=asynchronous)
    path, facts = manager.latest()
    assert facts == FACTS
    loaded = {name: torch.zeros_like(value) for name, value in tensors().items()}
    load(path, loaded)
    assert all(torch.equal(loaded[name], value) for name, value in tensors(3).items())
    assert find_checkpoint(tmp_path) == path


def test_a_folder_that_is_not_there_is_told_from_one_without_a_checkpoint(tmp_path):
    for path, says in ((tmp_path, "no checkpoint is there"), (tmp_path / "x", "no such folder")):
        with pytest.raises(CheckpointError, match=f"^{path}: .*{says}"):
            find_checkpoint(path)


@pytest.mark.parametrize("text", [b"step-00000009", b"", b"\xff\xfe", b"\0"])
def test_a_pointer_that_names_no_checkpoint_is_refused_by_name(tmp_path, text):
    (tmp_path / "latest").write_bytes(text)
    for path in (tmp_path, tmp_path / "latest"):
        with pytest.raises(CheckpointError, match="latest: names .*, which is not there: give a"):
            find_checkpoint(path)


def test_a_copy_is_saved_not_what_later_steps_make_of_it(tmp_path):
    manager, state = CheckpointManager(tmp_path), tensors()
    manager.save(1, state, FACTS)
    state["model.a"].fill_(9)
    manager.wait()
    loaded = tensors(0)
    load(manager.latest()[0], loaded)
    assert torch.equal(loaded["model.a"], tensors()["model.a"])


def test_two_complete_ones_stay(tmp_path):
    saved(tmp_path, (1, 2, 3, 4))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["latest", "step-00000003", "step-00000004"]


def test_what_somebody_keeps_beside_checkpoints_is_none_and_stays(tmp_path):
    saved(tmp_path, (1, 2))
    shutil.copytree(tmp_path / "step-00000002", tmp_path / "step-00000002-kept")
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-9")
    (tmp_path / "step-00000099").touch()
    (tmp_path / "step-00000002.tar").touch()
    assert CheckpointManager(tmp_path).latest()[0] == tmp_path / "step-00000002"
    saved(tmp_path, (3, 4))
    CheckpointManager(tmp_path).tidy()
    kept = {"step-00000002-kept", "step-9", "step-00000099", "step-00000002.tar"}
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"latest", "step-00000003", "step-00000004"} | kept


def test_every_changed_byte_is_noticed(tmp_path):
    """In any file; what JSON doesn't mean by a changed blank is no change."""
    path, facts = saved(tmp_path).latest()
    generator = random.Random(0)
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        places = range(len(whole))
        for place in generator.sample(places, min(len(whole), 250)):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << generator.randrange(8)
            file.write_bytes(flipped)
            try:
                assert verify(path) == facts, (file, place)
                assert file.name == "manifest.json", (file, place)
            except CheckpointError as error:
                assert str(path) in str(error)
                assert "\n" not in str(error)
        file.write_bytes(whole)
    assert verify(path) == facts


def test_every_truncated_or_missing_file_is_named(tmp_path):
    path, _ = saved(tmp_path).latest()
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        for size in {0, len(whole) // 2, len(whole) - 1}:
            file.write_bytes(whole[:size])
            with pytest.raises(CheckpointError, match=file.name):
                verify(path)
        file.unlink()
        with pytest.raises(CheckpointError, match=file.name):
            verify(path)
        file.write_bytes(whole)


def test_a_damaged_one_is_said_and_the_one_before_taken(tmp_path):
    said: list[str] = []
    manager = saved(tmp_path, (1, 2), say=said.append)
    manifest = json.loads((tmp_path / "step-00000002" / "manifest.json").read_text())
    manifest["facts"]["step"] = 7
    (tmp_path / "step-00000002" / "manifest.json").write_text(json.dumps(manifest))
    path, facts = manager.latest()
    assert (path.name, facts["step"]) == ("step-00000001", 1)
    assert len(said) == 1
    assert "step-00000002" in said[0]
    assert "falling back" in said[0]


def test_another_models_tensors_are_refused(tmp_path):
    path, _ = saved(tmp_path).latest()
    with pytest.raises(CheckpointError, match="has no model.c; it is of another model"):
        load(path, {"model.c": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="kept no such mean: give the keys of optimizer"):
        load(path, {"model_optimizer.a.exp_avg": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"model.a is \[5, 3\], this model's is \[5, 4\]"):
        load(path, {"model.a": torch.zeros(5, 4)})


def test_a_half_written_one_is_not_seen(tmp_path):
    manager = saved(tmp_path)
    (tmp_path / "step-00000009.partial").mkdir()
    assert manager.latest()[0].name == "step-00000003"
