"""The weights of a published model: which files hold them, and their tensors, one at a time."""

import pickle
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from megalite.errors import CheckpointError, first_line
from megalite.models.files import WEIGHTS, indexed

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TensorFiles:
    """The tensors of a folder by name, read one at a time."""

    def __init__(self, path: Path) -> None:
        """Find the files.

        Raises:
            CheckpointError: there is no weight file, or an index that can't be read.
        """
        self._where: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        for kind in WEIGHTS:
            index = path / f"{kind}.index.json"
            if index.is_file():
                self._where = indexed(index)
                return
            if (path / kind).is_file():
                self._where = dict.fromkeys(self._names(path / kind), path / kind)
                return
        raise CheckpointError(
            f"{path}: has no model.safetensors, no pytorch_model.bin and no index of them"
        )

    def _file(self, path: Path) -> Any:
        if path not in self._open:
            if not path.is_file():
                raise CheckpointError(f"{path}: is missing; the index names it")
            self._open.clear()
            _check_content(path)
            if path.suffix == ".safetensors":
                try:
                    self._open[path] = safe_open(str(path), framework="pt")
                except Exception as error:  # of several libraries, all meaning a damaged file
                    raise CheckpointError(f"{path}: can't be read: {first_line(error)}") from None
            else:
                self._open[path] = load_tensors(path)
        return self._open[path]

    def _names(self, path: Path) -> list[str]:
        return list(self._file(path).keys())

    def names(self) -> list[str]:
        """All names."""
        return list(self._where)

    def read(self, name: str) -> Tensor:
        """One tensor.

        Raises:
            CheckpointError: its file is damaged, or does not have it.
        """
        return self._part(name, lambda file: file.get_tensor(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape; its values aren't read. Raises as :meth:`read`."""
        return tuple(self._slice(name).shape)

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's dtype; of its values none or one row is read. Raises as :meth:`read`."""
        return self._slice(name).dtype

    def is_copy(self, name: str, other: str) -> bool:
        """Whether two tensors have one shape and equal values. Raises as :meth:`read`."""
        if self.shape(name) != self.shape(other):
            return False
        if not torch.equal(self._first_rows(name), self._first_rows(other)):
            return False  # the rest needn't be read
        return torch.equal(self.read(name), self.read(other))

    def _first_rows(self, name: str) -> Tensor:
        return self._part(name, lambda file: file.get_slice(name)[:64])[:64]

    def _slice(self, name: str) -> Tensor:
        """A tensor without storage, of the shape and dtype of a tensor of the files."""

        def describe(file: Any) -> Tensor:
            part = file.get_slice(name)
            shape = part.get_shape()
            one = part[:0] if shape else file.get_tensor(name)
            return torch.empty(shape, dtype=one.dtype, device="meta")

        return self._part(name, describe)

    def _part(self, name: str, take: Callable[[Any], Tensor]) -> Tensor:
        """A tensor of a pickle, or what ``take`` takes from a file of safetensors."""
        path = self._where[name]
        file = self._file(path)
        if name not in file.keys():  # noqa: SIM118 - a safetensors file is no dict
            raise CheckpointError(f"{path}: is incomplete: has no {name}, which the index names")
        try:
            return file[name] if isinstance(file, dict) else take(file)
        except Exception as error:  # of several libraries, all meaning a damaged file
            raise CheckpointError(f"{path}: {name} can't be read: {first_line(error)}") from None


def dtypes_of(path: Path) -> dict[str, Any]:
    """The type of most of a folder's tensors, and which have another, by their names.

    Raises:
        CheckpointError: a file is damaged.
    """
    files, names = TensorFiles(path), {kind: name for name, kind in DTYPES.items()}
    kinds = {name: names.get(files.dtype(name), "fp32") for name in files.names()}
    (most, _), *_ = Counter(kinds.values()).most_common(1) or [("fp32", 0)]
    return {"dtype": most, "dtypes": {name: kind for name, kind in kinds.items() if kind != most}}


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.bin`` file, mapped into memory where its format lets it.

    Raises:
        CheckpointError: it is damaged, or holds more than tensors.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is refused here in our words
            content = _load_pickle(path)
    except Exception as error:  # a damaged pickle raises anything
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
            raise CheckpointError(f"{path}: {MORE_THAN_TENSORS}") from None
        raise CheckpointError(f"{path}: can't be read: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: must hold tensors by name, is of type {type(content).__name__}"
        )
    other = next((name for name, value in content.items() if not isinstance(value, Tensor)), None)
    if other is not None:
        kind = type(content[other]).__name__
        raise CheckpointError(
            f"{path}: must hold tensors by name, and {other!r} is of type {kind}: take it out"
        )
    return content


def _check_content(path: Path) -> None:
    """Refuse what git puts in the place of a large file that it hasn't fetched."""
    with open(path, "rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise CheckpointError(
                f"{path}: is a pointer of Git LFS and no weights: run `git lfs pull` in its folder"
            )


POINTER = b"version https://git-lfs.github.com/spec/"
MORE_THAN_TENSORS = (
    "is damaged or holds more than tensors, and opening it could run code: take a whole copy, or "
    "convert it to safetensors where you trust it"
)


def _load_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # of before PyTorch 1.6, or damaged: the plain reading tells
        return torch.load(path, map_location="cpu", weights_only=True)
