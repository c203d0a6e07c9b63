"""The files that names of data mean: a file, those below a folder, those of a pattern."""

import glob
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from megalite.data.files import format_of
from megalite.data.hub_rows import is_hub_rows
from megalite.errors import DataError
from megalite.files.urls import local

ROWS = (".jsonl", ".ndjson", ".json", ".parquet")
ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
STORE = (".bin", ".idx")


def row_files(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files of rows that some names mean, each once, and what was left out below folders.

    Raises:
        DataError: a folder has none, or a pattern matches none.
    """
    files: dict[str, None] = {}
    left_out: list[str] = []
    for name in names:
        here = local(name)
        found, others = _rows_of(here)
        if not found:
            what = "no file below it has rows" if Path(here).is_dir() else "no file is named so"
            raise DataError(f"{name}: {what}: rows are in {', '.join(ROWS)}, compressed or not")
        files |= dict.fromkeys(found)
        left_out += others
    return list(files), left_out


def notes_of_others(left_out: Iterable[str]) -> list[str]:
    """What is said of files that :func:`row_files` left out."""
    return [f"{file}: left out, by its name not of rows" for file in left_out]


def _rows_of(name: str) -> tuple[list[str], list[str]]:
    if is_hub_rows(name):
        return [name], []
    path = Path(name)
    if path.is_dir():
        below = [str(file) for file in _below(path)]
        rows = [file for file in below if format_of(Path(file)) in ROWS and not _is_about(file)]
        return rows, [file for file in below if file not in rows]
    if is_pattern(name):
        found = [file for file in _matches(name) if Path(file).is_file()]
        return [file for file in found if not _is_about(file)], [*filter(_is_about, found)]
    return [name], []


def _is_about(file: str) -> bool:
    """Whether a file is what the library ``datasets`` tells of rows beside them."""
    return Path(file).name in ABOUT


def store_names(names: Sequence[str]) -> list[str]:
    """The token stores that some names mean, each once, without their endings.

    Raises:
        DataError: a folder has none, or a pattern matches none.
    """
    stores: dict[str, None] = {}
    for name in names:
        found = _stores_of(local(name))
        if not found:
            raise DataError(
                f"{name}: no token store (.bin and .idx) is there; `megalite data prepare` makes it"
            )
        stores |= dict.fromkeys(found)
    return list(stores)


def _stores_of(name: str) -> list[str]:
    if Path(f"{name}.idx").is_file():
        return [name]
    if Path(name).is_dir():
        return [str(path.with_suffix("")) for path in _below(Path(name)) if path.suffix == ".idx"]
    if is_pattern(name):
        stems = [m[: -len(end)] for m in _matches(f"{name}*") for end in STORE if m.endswith(end)]
        whole = [stem for stem in dict.fromkeys(stems) if Path(f"{stem}.idx").is_file()]
        matching = set(glob.glob(f"{name}.idx", recursive=True)) | set(_matches(name))
        return [stem for stem in whole if {f"{stem}{end}" for end in STORE} & matching]
    return [name]


def files_of(names: Iterable[str]) -> Iterator[Path]:
    """Every file that names of rows or stores mean, as far as they are there."""
    for name in map(local, names):
        rows = [Path(file) for file in _rows_of(name)[0]]
        stores = [Path(f"{stem}{end}") for stem in _stores_of(name) for end in STORE]
        yield from dict.fromkeys(path for path in (*rows, *stores) if path.is_file())


def is_pattern(name: str) -> bool:
    """Whether a name is a pattern of names, such as ``rows/*.jsonl``; a file's own name is none."""
    return glob.has_magic(name) and not Path(name).exists()


def _matches(pattern: str) -> list[str]:
    return sorted(glob.glob(pattern, recursive=True))


def _below(folder: Path) -> list[Path]:
    """The files below a folder, in order; none that is hidden or in a hidden folder."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [p for p in found if not any(part[0] == "." for part in p.relative_to(folder).parts)]
