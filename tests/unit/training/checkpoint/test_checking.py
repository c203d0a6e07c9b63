"""A checkpoint's files are read once by those that load it, and again only when they changed."""

import pytest
import torch

from megalite.errors import CheckpointError
from megalite.training.checkpoint import manifest
from megalite.training.checkpoint.checking import Checkers, verify_together
from megalite.training.checkpoint.manager import CheckpointManager


@pytest.fixture
def checkpoint(tmp_path):
    manager = CheckpointManager(tmp_path, asynchronous=False)
    manager.save(1, {"a": torch.arange(3000.0)}, {"step": 1})
    return tmp_path / "step-00000001"


@pytest.fixture
def read(monkeypatch):
    """Names of the files whose checksums are made, in order."""
    names, inner = [], manifest.checksum

    def note(path):
        names.append(path.name)
        return inner(path)

    monkeypatch.setattr(manifest, "checksum", note)
    return names


def test_what_several_models_start_from_is_read_once(checkpoint, read):
    checkers = Checkers()
    for _ in range(4):
        assert verify_together(checkpoint, checkers) == {"step": 1}
    assert sorted(read) == [".metadata", "__0_0.distcp"]
    verify_together(checkpoint, Checkers())
    assert len(read) == 4


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_a_file_that_was_written_to_since_is_read_again(checkpoint, name):
    checkers = Checkers()
    verify_together(checkpoint, checkers)
    file = checkpoint / name
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}: its checksum doesn't match"):
        verify_together(checkpoint, checkers)
    file.unlink()
    with pytest.raises(CheckpointError, match=f"{name}: is missing"):
        verify_together(checkpoint, checkers)
