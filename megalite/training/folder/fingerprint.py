"""What a run took from elsewhere: where it is, and a fingerprint of its content."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megalite.data.hub_rows import dataset_version, is_hub_rows
from megalite.data.named_files import files_of
from megalite.errors import CheckpointError
from megalite.files.content import fingerprint
from megalite.models.files import WEIGHT_ENDS
from megalite.models.hub import folder_of
from megalite.models.hugging_face import is_hugging_face
from megalite.training.checkpoint.load import find_checkpoint
from megalite.training.checkpoint.manifest import MANIFEST

NOT_TOKENIZER = ("config.json", "generation_config.json", "README.md")  # beside one, in a model


def weights_source(path: str) -> dict[str, Any] | None:
    """A checkpoint of ours or a Hugging Face folder: where it is, and its fingerprint.

    None where there is none; whoever loads it says what is wrong.
    """
    folder = folder_of(path)
    if is_hugging_face(folder):
        files = [f for f in _files(folder) if f.suffix in WEIGHT_ENDS or f.name == "config.json"]
        return {"path": path, "fingerprint": fingerprint(files)}
    try:
        checkpoint = find_checkpoint(folder)
        return {"path": str(checkpoint), "fingerprint": fingerprint([checkpoint / MANIFEST])}
    except (CheckpointError, OSError):
        return None


def tokenizer_source(path: str) -> dict[str, Any] | None:
    """A tokenizer's files, which may stand beside a model's weights; None where there are none."""
    place = folder_of(path)
    if place.is_file():
        return {"path": path, "fingerprint": fingerprint([place])}
    files = [
        f for f in _files(place) if f.suffix not in WEIGHT_ENDS and f.name not in NOT_TOKENIZER
    ]
    return {"path": path, "fingerprint": fingerprint(files)} if files else None


def data_source(paths: Iterable[str]) -> dict[str, Any] | None:
    """Files of data, token stores without their endings, datasets; None where there are none."""
    names = list(paths)
    files = list(files_of(names))
    versions = [dataset_version(name) for name in names if is_hub_rows(name)]
    found = {"path": names, "fingerprint": fingerprint(files, versions)}
    return found if files or versions else None


def _files(folder: Path) -> list[Path]:
    """The files directly in a folder that aren't hidden, in order of name."""
    if not folder.is_dir():
        return []
    found = (file for file in folder.iterdir() if file.is_file() and file.name[0] != ".")
    return sorted(found)
