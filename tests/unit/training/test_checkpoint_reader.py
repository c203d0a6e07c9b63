"""Nothing that a checkpoint's files name is called: not by resuming, nor by any other reader."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from megalite.errors import CheckpointError
from megalite.training.checkpoint.load import load
from megalite.training.checkpoint.manager import CheckpointManager
from megalite.training.checkpoint.reader import CheckpointReader

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.float64)


class RunsCode:
    """Gives the true metadata after it has left a mark."""

    def __init__(self, mark: Path, metadata: bytes) -> None:
        self.mark, self.metadata = mark, metadata

    def __reduce__(self) -> tuple[Any, ...]:
        true = f"__import__('pickle').loads({self.metadata!r})"
        return eval, (f"(open({str(self.mark)!r}, 'w').close(), {true})[1]",)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    manager = CheckpointManager(tmp_path / "run", asynchronous=False)
    tensors = {str(dtype): torch.ones(3, 2).to(dtype) for dtype in DTYPES}
    manager.save(1, tensors | {"scalar": torch.tensor(2.0)}, {"step": 1})
    return tmp_path / "run" / "step-00000001"


def test_tensors_of_every_dtype_are_read(checkpoint: Path):
    tensors = {str(dtype): torch.zeros(3, 2, dtype=dtype) for dtype in DTYPES}
    tensors["scalar"] = torch.tensor(0.0)
    load(checkpoint, tensors)
    assert all(bool((tensors[str(dtype)] == 1).all()) for dtype in DTYPES)
    assert float(tensors["scalar"]) == 2


def test_metadata_that_would_run_code_is_refused_and_does_not(checkpoint: Path, tmp_path: Path):
    file, mark = checkpoint / ".metadata", tmp_path / "mark"
    file.write_bytes(pickle.dumps(RunsCode(mark, file.read_bytes())))
    with pytest.raises(CheckpointError, match=r"\.metadata: is no metadata .* names builtins.eval"):
        load(checkpoint, {"scalar": torch.tensor(0.0)})
    assert not mark.exists()


@pytest.mark.parametrize("value", [os.system, json.loads, print, pickle.loads])
def test_only_what_metadata_is_made_of_may_be_named(checkpoint: Path, value: Any):
    (checkpoint / ".metadata").write_bytes(pickle.dumps(value))
    with pytest.raises(CheckpointError, match="names"):
        CheckpointReader(checkpoint).read_metadata()


def test_an_entry_that_is_no_tensor_is_refused(checkpoint: Path):
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

    (checkpoint / ".metadata").write_bytes(
        pickle.dumps(Metadata({"scalar": BytesStorageMetadata()}))
    )
    with pytest.raises(CheckpointError, match="BytesStorageMetadata"):
        load(checkpoint, {"scalar": torch.tensor(0.0)})


def test_a_file_outside_the_checkpoint_is_refused(checkpoint: Path):
    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    for place in metadata.storage_data.values():
        place.relative_path = "../../elsewhere"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="points to '../../elsewhere'"):
        load(checkpoint, {"scalar": torch.tensor(0.0)})
