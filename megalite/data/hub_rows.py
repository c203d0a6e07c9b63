"""Rows of datasets that the Hugging Face library ``datasets`` knows, as ``hf:NAME``.

``hf:NAME[@REVISION][:CONFIG][:SPLIT]``: NAME is a dataset of the Hub or a folder of data files
here, SPLIT is ``train`` where nothing is said, or as that library writes it: ``train[:10%]``.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megalite.errors import DataError

PREFIX = "hf:"
PARTS = re.compile(r":(?![^\[]*\])")  # not those of a split's slice


def is_hub_rows(name: str | Path) -> bool:
    """Whether a name of data is one of these."""
    return str(name).startswith(PREFIX)


@dataclass(frozen=True)
class HubRows:
    """A dataset by its parts; see this file's first lines."""

    path: str
    revision: str
    config: str
    split: str

    @classmethod
    def of(cls, name: str) -> "HubRows":
        """Take a name apart.

        Raises:
            DataError: it is not of that form.
        """
        path, *more = PARTS.split(name.removeprefix(PREFIX))
        path, _, revision = path.partition("@")
        if not path or len(more) > 2 or not all(more):
            raise DataError(f"{name}: must be hf:NAME[@REVISION][:CONFIG][:SPLIT]")
        return cls(path, revision, more[0] if len(more) == 2 else "", more[-1] if more else "train")

    @property
    def arguments(self) -> dict[str, Any]:
        """What ``datasets`` is asked for."""
        return {"path": self.path, "name": self.config or None, "revision": self.revision or None}


def hub_rows(name: str, streaming: bool = False) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a dataset: ``name:row number`` and the row.

    Args:
        name: as this file's first lines say.
        streaming: whether rows are fetched as they are read and not kept; otherwise they are read
            from that library's cache, also where there is no network.

    Raises:
        DataError: there is no such dataset, config or split, or it can't be fetched.
    """
    wanted, datasets = HubRows.of(name), _library(name)
    try:
        rows = datasets.load_dataset(**wanted.arguments, split=wanted.split, streaming=streaming)
        for number, row in enumerate(rows, 1):
            yield f"{name}:row {number}", row
    except DataError:
        raise
    except Exception as error:  # of many kinds: of networks, formats, names
        raise DataError(f"{name}: {_in_words(error)}") from None


def dataset_version(name: str) -> str:
    """A text that another version of a dataset doesn't have; empty where it isn't known."""
    wanted = HubRows.of(name)
    try:
        return str(_library(name).load_dataset_builder(**wanted.arguments).hash or "")
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{name}: {_in_words(error)}") from None


def _library(name: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{name}: needs the package datasets: pip install 'megalite[datasets]'"
        ) from None
    datasets.disable_progress_bars()
    return datasets


def _in_words(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    offline = isinstance(error, OSError) and "Hub" in text
    return f"{text}: fetch it where the Hub can be reached, or give files" if offline else text
