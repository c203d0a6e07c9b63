"""Which run of a tracking service a run's folder is: a run that goes on goes on there too."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megalite.errors import ConfigError, naming

NAME = "trackers.json"


def package(name: str) -> Any:
    """A tracker's package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"--run.trackers {name}: needs the package {name}: pip install 'megalite[trackers]'"
        ) from None


def kept_id(folder: Path, tracker: str) -> str:
    """The service's number of this run; empty for one that begins."""
    return str(_ids(folder).get(tracker, ""))


def keep_id(folder: Path, tracker: str, number: str) -> None:
    """Keep the service's number of this run beside those of other trackers."""
    path = folder / NAME
    with naming(path):
        path.write_text(json.dumps({**_ids(folder), tracker: number}) + "\n", encoding="utf-8")


def _ids(folder: Path) -> dict[str, Any]:
    """The numbers that a folder keeps, by tracker; none where there is no such file."""
    try:
        ids = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return ids if isinstance(ids, dict) else {}


def flat(about: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """A config's values by the whole names of their keys, such as ``train.steps``."""
    values: dict[str, Any] = {}
    for key, value in about.items():
        name = f"{before}{key}"
        values |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return values
