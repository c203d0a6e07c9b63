"""Configs that build on others: a recipe by name, and ``base``, the config that a file changes.

A recipe is a config with a table ``[recipe]`` that says what it is; ``recipe:NAME`` stands for its
file wherever a file is taken. A file with ``base = "recipe:NAME"``, or the path of another file
beside it, has that one's values where it says nothing itself.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megalite.errors import ConfigError

PREFIX = "recipe:"
FOLDER = Path(__file__).parents[1] / "recipes"
TABLE, BASE = "recipe", "base"


@dataclass(frozen=True)
class Based:
    """The values of a config file and of those that it builds on.

    Attributes:
        values: of all of them, its own before a base's.
        recipe: the table ``[recipe]``, its own before a base's; empty where there is none.
    """

    values: dict[str, Any]
    recipe: Mapping[str, Any] = field(default_factory=dict)


def is_recipe(name: str | Path) -> bool:
    """Whether a word of the command line is a recipe's name."""
    return str(name).startswith(PREFIX)


def recipe_names() -> list[str]:
    """All recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def recipe_path(name: str) -> Path:
    """The file of ``recipe:NAME``.

    Raises:
        ConfigError: there is none; it names the nearest.
    """
    wanted, names = name.removeprefix(PREFIX), recipe_names()
    if wanted in names:
        return FOLDER / f"{wanted}.toml"
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
    near = near or [other for other in names if wanted and other.startswith(wanted[:3])][:3]
    hint = f"did you mean {' or '.join(PREFIX + other for other in near)}? " if near else ""
    raise ConfigError(f"{name}: no such recipe; {hint}megalite recipes lists them")


def file_of(name: str | Path) -> Path:
    """The file that a word of the command line or a ``base`` names."""
    return recipe_path(str(name)) if is_recipe(name) else Path(name)


def merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """``own`` over ``base``, table by table; other values, lists too, replace each other."""
    result = dict(base)
    for key, value in own.items():
        under = result.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            result[key] = merged(under, value)
        else:
            result[key] = value
    return result
