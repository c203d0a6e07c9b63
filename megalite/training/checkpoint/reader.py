"""Read a checkpoint's files without running code from them.

PyTorch writes a checkpoint's metadata with pickle, which calls whatever a file names. Here a file
may name only what such metadata is made of, and hold tensors only.
"""

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from megalite.errors import CheckpointError

_CHECKPOINT = "torch.distributed.checkpoint"
ALLOWED = {
    f"{_CHECKPOINT}.metadata": (
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    f"{_CHECKPOINT}.filesystem": ("_StorageInfo", "_StoragePrefix"),
    "torch": (
        "Size",
        "bfloat16",
        "bool",
        "float16",
        "float32",
        "float64",
        "int32",
        "int64",
        "uint8",
        "strided",
    ),
    "torch.serialization": ("_get_layout",),
    "pathlib": ("Path", "PosixPath", "PurePosixPath"),
}


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"names {module}.{name}")
        return super().find_class(module, name)


class CheckpointReader(dcp.FileSystemReader):
    """PyTorch's reader of a checkpoint's folder, for tensors alone.

    Attributes:
        folder: of the checkpoint; its metadata is read once.
    """

    def __init__(self, folder: Path) -> None:
        """Read from ``folder``."""
        super().__init__(folder)
        self.folder = folder
        self._metadata: Metadata | None = None

    def read_metadata(self, *_args: Any, **_options: Any) -> Metadata:
        """Which tensors there are, and where.

        Raises:
            CheckpointError: the file names something else than metadata, or other files.
        """
        if self._metadata is None:
            path = self.folder / ".metadata"
            try:
                with open(path, "rb") as file:
                    self._metadata = self._parsed(file)
            except Exception as error:  # a damaged pickle raises anything
                raise CheckpointError(
                    f"{path}: is no metadata of a checkpoint, and was not run: {error}"
                ) from None
        metadata = self._metadata
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def _parsed(self, file: BinaryIO) -> Metadata:
        metadata: Any = _MetadataUnpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"holds a {type(metadata).__name__}")
        for name, entry in metadata.state_dict_metadata.items():
            if not isinstance(entry, TensorStorageMetadata):
                raise pickle.UnpicklingError(f"{name} is no tensor")
        for place in metadata.storage_data.values():
            if Path(place.relative_path).name != place.relative_path:
                raise pickle.UnpicklingError(f"points to {place.relative_path!r}")
        return metadata
