"""The compiled parts of this package; it may have been installed without them."""

from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path


@cache
def extension(name: str) -> str | None:
    """The file of ``megalite.NAME`` in this package's own folder; None where it isn't built."""
    spec = PathFinder.find_spec(f"megalite.{name}", [str(Path(__file__).parent)])
    return None if spec is None else spec.origin
