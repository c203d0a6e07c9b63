"""URLs of files and folders, and where their copies are on this machine.

Which schemes there are is fsspec's affair: ``s3://``, ``gs://``, ``https://`` and so on.
"""

import os
import re
from pathlib import Path

from megalite.errors import ConfigError, DataError

URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)
CHAIN = re.compile(r"[a-z][a-z0-9+.-]*::")


def is_url(name: str | Path) -> bool:
    """Whether a name is that of a file or folder elsewhere."""
    return isinstance(name, str) and (URL.match(name) or CHAIN.match(name)) is not None


def cache() -> Path:
    """The folder of all that is kept on this machine for later starts.

    Source: the XDG Base Directory Specification, which ignores a relative path.
    """
    told = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (told if told.is_absolute() else Path.home() / ".cache") / "megalite"


def place_of(url: str) -> Path:
    """Where the copy of a URL's file or folder is, or will be.

    A pattern's place is a pattern: its matches are the copies of the URL's matches.
    """
    match = URL.match(url)
    assert match is not None
    parts = [part for part in match[2].split("/") if part not in ("", ".", "..")]
    return cache().joinpath("files", match[1], *parts)


def local(name: str) -> str:
    """A name as a path on this machine: a URL's copy, anything else as it is.

    Raises:
        DataError: it is empty, which as a path would be the working folder.
    """
    if not name:
        raise DataError(
            '"" names no file or folder, perhaps as a variable of the shell is empty: give a '
            'name, or "." for the working folder'
        )
    return str(place_of(name)) if URL.match(name) else name


def check_no_url(key: str, path: str) -> None:
    """Refuse a URL where files are written.

    Raises:
        ConfigError: it names the key.
    """
    if is_url(path):
        raise ConfigError(
            f"--{key} {path}: must be on a file system of this machine, as URLs are only read: "
            "mount it, or copy what is written there afterwards"
        )
