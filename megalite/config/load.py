"""Read a config: a TOML file and its bases, ``--section.key value`` overrides, then validation."""

import json
import math
import sys
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from megalite.config.bases import BASE, TABLE, Based, file_of, is_recipe, merged
from megalite.config.explain import explain, placed, where
from megalite.config.section import Section, find_field, members
from megalite.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SectionT = TypeVar("SectionT", bound=Section)
MOST = 2**63 - 1  # of a whole number, as TOML has it
NONE = "none"  # how TOML, which has no null, says that an optional value is not set


def load(
    cls: type[SectionT],
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    change: Callable[[Based], dict[str, Any]] | None = None,
) -> SectionT:
    """Make a config of ``cls`` from a file and overrides.

    Args:
        cls: the config's class.
        path: a TOML file, or a recipe's name; None starts from the defaults.
        overrides: command line words, ``--section.key value`` or ``--section.key=value``; a
            boolean key alone means true.
        change: makes other values of the file's, before the overrides.

    Raises:
        ConfigError: naming the key, its value and what would be right.
    """
    based = Based({}) if path is None else read_based(path)
    values = based.values if change is None else change(based)
    given = _parse_overrides(cls, overrides)
    for key, value in given.items():
        _place(values, key, value)
    cls = cast("type[SectionT]", cls.chosen(values, str(based.recipe.get("stage", ""))))
    _check_stage(cls, based, path)
    for key, value in _parse_overrides(cls, overrides).items():
        _place(values, key, value)
    _clear_none(cls, values, ())
    return validated(cls, values, "" if path is None else str(path), set(given))


def validated(
    cls: type[SectionT],
    values: Mapping[str, object],
    source: str = "config",
    given: Collection[tuple[str, ...]] = (),
) -> SectionT:
    """Make a config of ``cls`` from tables of values as TOML has them.

    Args:
        cls: the config's class.
        values: tables, lists, texts, numbers and booleans.
        source: where they stand; empty: on the command line.
        given: keys of those that come from the command line.

    Raises:
        ConfigError: naming the key, its value and what would be right.
    """
    _check_values(values, (), lambda key: where(key, source, given))
    try:
        return cls.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise ConfigError(explain(error, cls, source, set(given))) from None
    except ConfigError as error:
        raise ConfigError(placed(str(error), cls, values)) from None


def _check_values(
    value: object, key: tuple[str, ...], name: Callable[[tuple[str, ...]], str]
) -> None:
    """Refuse what no key means: inf, nan, numbers beyond 64 bits, text not in UTF-8, dates."""
    if isinstance(value, Mapping):
        for part, inner in value.items():
            _check_values(part, (*key, str(part)), name)
            _check_values(inner, (*key, str(part)), name)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_values(inner, key, name)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name(key)} = {value}: must be a finite number")
    elif isinstance(value, int) and not -MOST <= value <= MOST:
        raise ConfigError(f"{name(key)} = {value}: must be a whole number of at most 64 bits")
    elif isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ConfigError(
            f"{name(key)} = {value!r}: must be text in UTF-8; where the locale has another "
            "encoding set one of UTF-8, such as LC_ALL=C.UTF-8"
        )
    elif value is not None and not isinstance(value, str | int | float):
        raise ConfigError(
            f"{name(key)} = {value!r}: must be text, a number, true or false, a list or a table, "
            f"came {type(value).__module__}.{type(value).__qualname__}"
        )


def _check_stage(cls: type[Section], based: Based, path: str | Path | None) -> None:
    """Refuse a recipe of another stage than the command's."""
    needed, stage = based.recipe.get("stage"), getattr(cls, "stage", None)
    if needed and stage and needed != stage:
        raise ConfigError(f"{path}: is of the stage {needed}: use megalite {needed} {path}")


def read_based(name: str | Path, above: tuple[Path, ...] = ()) -> Based:
    """The values of a config file and of its bases.

    Args:
        name: a file, or a recipe's name.
        above: the files that build on it.

    Raises:
        ConfigError: as :func:`read_toml`; or a base is no text, or builds on itself.
    """
    path = file_of(name)
    if path.resolve() in above:
        raise ConfigError(f"{above[-1]}: {BASE}: builds on itself through {path}")
    values: dict[str, Any] = read_toml(path)
    base, table = values.pop(BASE, None), values.pop(TABLE, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {TABLE} = {table!r}: must be a table that says what it is")
    if base is None:
        return Based(values, table)
    if not isinstance(base, str):
        raise ConfigError(f'{path}: {BASE} = {base!r}: must be a file or "recipe:NAME"')
    under = read_based(base if is_recipe(base) else path.parent / base, (*above, path.resolve()))
    return Based(merged(under.values, values), merged(under.recipe, table))


def read_toml(path: Path) -> dict[str, object]:
    """Parse a TOML file.

    Raises:
        ConfigError: the file is missing, unreadable or not TOML; names the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file; megalite config prints one") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder, where {_by_key(path)}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read as a config file: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {_not_toml(path, error)}") from None


def _not_toml(path: Path, error: ValueError) -> str:
    if path.suffix != ".toml":
        return f"is no TOML file, where {_by_key(path)}"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text at byte {error.start}"
    return f"not valid TOML: {error}"


def _by_key(path: Path) -> str:
    return (
        "a config file's name stands; all else is given by its key, such as --model "
        f"{path} or --data.train '[\"{path}\"]'"
    )


def _parse_overrides(cls: type[Section], words: Sequence[str]) -> dict[tuple[str, ...], object]:
    """Turn command line words into {key path: value}; a key given twice takes its last value."""
    values: dict[tuple[str, ...], object] = {}
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not word.startswith("--") or len(word) == 2:
            raise ConfigError(f"{word!r}: expected --section.key value")
        name, has_value, text = word[2:].partition("=")
        key = tuple(name.replace("-", "_").split("."))
        if not has_value:
            if position < len(words) and not words[position].startswith("--"):
                text = words[position]
                position += 1
            elif _accepts(cls, key, bool):
                text = "true"
            else:
                raise ConfigError(f"--{name}: a value must follow, as in --{name} VALUE")
        values[key] = _parse_value(cls, key, text)
    return values


def _accepts(cls: type[Section], key: tuple[str, ...], kind: object) -> bool:
    field = find_field(cls, key)
    return field is not None and kind in members(field.annotation)


def _parse_value(cls: type[Section], key: tuple[str, ...], text: str) -> object:
    """Read a value as TOML, or as plain text where the field is text or TOML can't read it.

    Where a list of texts is wanted, a text that begins no list is one of it.
    """
    field = find_field(cls, key)
    kinds = members(field.annotation) if field is not None else ()
    if any(kind in (str, Path) or _is_literal_text(kind) for kind in kinds):
        return text
    if text and not text.startswith("[") and all(map(_is_list_of_texts, kinds)) and kinds:
        return [text]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _is_list_of_texts(kind: object) -> bool:
    items = typing.get_args(kind)
    return typing.get_origin(kind) is tuple and (items[0] is str or _is_literal_text(items[0]))


def _is_literal_text(kind: object) -> bool:
    choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    return any(isinstance(choice, str) for choice in choices)


def _place(values: dict[str, object], key: tuple[str, ...], value: object) -> None:
    """Set ``values[key[0]][key[1]]...``, making the tables on the way."""
    table = values
    for depth, name in enumerate(key[:-1]):
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            inside = ".".join(key[: depth + 1])
            raise ConfigError(f"--{'.'.join(key)}: {inside} is a value, not a section")
        table = inner
    table[key[-1]] = value


def _clear_none(cls: type[Section], table: dict[str, object], prefix: tuple[str, ...]) -> None:
    """Turn "none" into null wherever the field may be unset."""
    for name, value in table.items():
        if isinstance(value, dict):
            _clear_none(cls, value, (*prefix, name))
        elif value == NONE and _accepts(cls, (*prefix, name), type(None)):
            table[name] = None
