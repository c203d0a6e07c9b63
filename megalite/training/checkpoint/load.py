"""Find a checkpoint, and load tensors from it into any layout."""

import pickle
import warnings
from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megalite.errors import CheckpointError, first_line
from megalite.models.peft import is_adapter
from megalite.training.checkpoint.manifest import MANIFEST
from megalite.training.checkpoint.reader import CheckpointReader

POINTERS = ("latest", "best")


def load(source: Path | CheckpointReader, tensors: dict[str, Tensor]) -> None:
    """Load tensors in place, whatever layout they were saved from; each process reads its own.

    Args:
        source: a checkpoint's folder, or a reader of it, where it is loaded from several times.
        tensors: by the names that they were saved under.

    Raises:
        CheckpointError: a tensor is missing or has another shape: it is of another model; or a file
            holds something else.
    """
    reader = source if isinstance(source, CheckpointReader) else CheckpointReader(source)
    path = reader.folder
    saved = reader.read_metadata().state_dict_metadata
    for name, tensor in tensors.items():
        entry = saved.get(name)
        if not isinstance(entry, TensorStorageMetadata):
            raise CheckpointError(f"{path}: has no {name}; {_why_none(name)}")
        size = tuple(entry.size)
        if size != tuple(tensor.shape):
            raise CheckpointError(
                f"{path}: {name} is {list(size)}, this model's is {list(tensor.shape)}; it is of "
                "another model"
            )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        try:
            dcp.load(tensors, storage_reader=reader, no_dist=True)
        except dcp.CheckpointException as error:
            raise CheckpointError(f"{path}: {_reason(error)}") from None


def _why_none(name: str) -> str:
    """Why a checkpoint lacks a tensor, and what to do where that is another optimizer's state."""
    if "_optimizer." not in name:
        return "it is of another model"
    return (
        "its run's optimizer kept no such mean: give the keys of optimizer the values they had, or "
        "this run a folder of its own"
    )


def _reason(error: dcp.CheckpointException) -> str:
    """The first failure of a load; what PyTorch says of a pickle with code in it is no advice."""
    failure = next(iter(error.failures.values()))[0]
    if isinstance(failure, pickle.UnpicklingError) or "weights_only" in str(failure):
        return "a file is damaged or holds more than tensors, and was not opened: it could run code"
    return f"can't be read: {first_line(failure)}"


def _named_by(pointer: Path) -> Path:
    """The checkpoint that a file such as ``latest`` names."""
    name = pointer.read_text(encoding="utf-8", errors="replace").strip()
    if not name or not (pointer.parent / name).is_dir():
        raise CheckpointError(
            f"{pointer}: names {name!r}, which is not there: give a step-... folder beside it"
        )
    return pointer.parent / name


def find_checkpoint(path: Path | str) -> Path:
    """The checkpoint at a path: itself, the latest of a run's folder, or what a pointer names.

    The files ``latest`` and ``best`` of a run's ``checkpoints`` are pointers.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        return path
    if path.name in POINTERS and path.is_file():
        return _named_by(path)
    for folder in (path, path / "checkpoints"):
        latest = folder / "latest"
        if latest.is_file():
            return _named_by(latest)
    if is_adapter(path):
        raise CheckpointError(
            f"{path}: is an adapter in PEFT's format: `megalite convert` makes a checkpoint of it"
        )
    what = "no checkpoint is there" if path.exists() else "there is no such folder"
    raise CheckpointError(
        f"{path}: {what}; give a run's folder, a step-... folder of it or a Hugging Face folder"
    )
