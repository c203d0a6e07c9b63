"""Say in one line what is wrong with a config and what would be right."""

import difflib
import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping

from pydantic import ValidationError
from pydantic_core import ErrorDetails as Problem

from megalite.config.elsewhere import ours_for
from megalite.config.section import (
    Section,
    UsualName,
    all_keys,
    find_field,
    named_at,
    section_class,
)
from megalite.errors import ConfigError


def explain(
    error: ValidationError, cls: type[Section], source: str, overridden: set[tuple[str, ...]]
) -> str:
    """Make one line of pydantic's errors.

    Args:
        error: what validation found.
        cls: the config's class.
        source: where values that are not overrides came from; empty: from no file, so that all of
            them are the command line's.
        overridden: key paths that came from the command line.
    """
    problems: dict[tuple[str, ...], list[Problem]] = defaultdict(list)
    for problem in error.errors(include_url=False):
        problems[_key(cls, problem)].append(problem)
    lines = []
    for key, found in problems.items():
        lines.append(_problem(cls, key, found, where(key, source, overridden)))
    return "; ".join(lines)


def where(key: tuple[str, ...], source: str, overridden: Collection[tuple[str, ...]]) -> str:
    """A key as the user wrote it: an option, or where it stands in ``source``."""
    name = ".".join(key)
    return f"--{name}" if key in overridden or not source else f"{source}: {name}"


def _key(cls: type[Section], problem: Problem) -> tuple[str, ...]:
    """Cut pydantic's location, which also names union members, down to the key."""
    key: tuple[str, ...] = ()
    for part in problem["loc"]:
        if isinstance(part, int):
            continue
        if find_field(cls, (*key, part)) is None and not _holds(cls, key):
            break
        key = (*key, part)
        if find_field(cls, key) is None:
            break
    return key


def _holds(cls: type[Section], key: tuple[str, ...]) -> bool:
    """Whether the key names a section; an unknown key inside it then belongs to the name."""
    field = find_field(cls, key)
    return not key or (field is not None and section_class(field.annotation) is not None)


def _problem(cls: type[Section], key: tuple[str, ...], found: list[Problem], name: str) -> str:
    first = found[0]
    field = find_field(cls, key)
    if first["type"] == "missing":
        what = field.description if field is not None else None
        return f"{name} must be set" + (f": {what}" if what else "")
    if first["type"] == "extra_forbidden" and (reason := cls.lacking.get(".".join(key))):
        return f"{name}: {reason}"
    if first["type"] == "extra_forbidden":
        return f"{name}: no such key; {_suggestion(cls, key)}"
    if first["type"] in ("model_type", "model_attributes_type"):
        inner = section_class(field.annotation) if field is not None else None
        keys = ", ".join(inner.model_fields) if inner is not None else ""
        return f"{name} is a section with the keys {keys}; got {first['input']!r}"
    if first["type"] in ("value_error", "assertion_error"):
        return f"{name}: {first['msg'].partition(', ')[2] or first['msg']}"
    wanted = " or ".join(dict.fromkeys(_requirement(problem) for problem in found))
    value = first["input"]
    close = _meant(first, value)
    return f"{name} = {value!r}: must be {wanted}{close}"


def _requirement(problem: Problem) -> str:
    """Say what was asked for, from pydantic's sentence."""
    if problem["type"] == "string_too_short":
        return "a text that is not empty"
    if problem["type"] == "too_short":
        return f"a list of at least {problem['ctx']['min_length']}"
    text = problem["msg"].removeprefix("Input should be ")
    if not text.startswith("a valid "):
        return text
    kind = text.removeprefix("a valid ")
    words = {"array": "list", "tuple": "list", "boolean": "true or false"}
    kind = words.get(kind, kind)
    article = "an " if kind[0] in "aeiou" else "a "
    return kind if kind == "true or false" else article + kind


def _meant(problem: Problem, value: object) -> str:
    if problem["type"] in ("tuple_type", "list_type") and isinstance(value, str):
        items = ", ".join(map(_item, value.strip("[]").split(",")))
        return f", such as '[{items}]'"
    if problem["type"] != "literal_error" or not isinstance(value, str):
        return ""
    choices = problem["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
    close = difflib.get_close_matches(value, choices, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _item(text: str) -> str:
    """An item of a list whose quotes a shell took, as TOML has it."""
    text = text.strip().strip("\"'")
    return text if re.fullmatch(r"[+-]?\d[\d.e+-]*", text) else json.dumps(text, ensure_ascii=False)


def _suggestion(cls: type[Section], key: tuple[str, ...]) -> str:
    """Name the closest key of the same section, the same key elsewhere, or all there are.

    A name that another trainer has for a key is answered with ours.
    """
    if known := ours_for(key[-1], set(all_keys(cls))):
        return known
    field = find_field(cls, key[:-1])
    section = cls if field is None else section_class(field.annotation) or cls
    prefix = ".".join(key[:-1]) + "." if len(key) > 1 else ""
    close = difflib.get_close_matches(key[-1], section.model_fields, n=1, cutoff=0.7)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    elsewhere = [other for other in all_keys(cls) if other.split(".")[-1] == key[-1]]
    nearest = elsewhere or difflib.get_close_matches(".".join(key), list(all_keys(cls)), n=1)
    if nearest:
        return f"did you mean {' or '.join(nearest)}?"
    names = ", ".join(section.model_fields)
    return f"{prefix.rstrip('.') or 'the config'} has {names}"


def placed(message: str, cls: type[Section], values: Mapping[str, object], above: str = "") -> str:
    """A section's refusal, in the name of where the section stands.

    A section that stands elsewhere than its class says is marked with :class:`UsualName`; the one
    that refuses is found by reading it alone.
    """
    for name, field in cls.model_fields.items():
        section, told = section_class(field.annotation), values.get(name)
        usual = next((one.name for one in field.metadata if isinstance(one, UsualName)), "")
        if section is None or not told:
            continue
        if not usual and isinstance(told, Mapping):
            message = placed(message, section, told, f"{above}{name}.")
        items = told if isinstance(told, list) else [told]
        for number, item in enumerate(items if usual else ()):
            if _refuses(section, item, message):
                where = f"{above}{name}.{number}" if isinstance(told, list) else above + name
                return named_at(message, section, usual, where)
    return message


def _refuses(section: type[Section], values: object, message: str) -> bool:
    try:
        section.model_validate_json(json.dumps(values))
    except ConfigError as error:
        return str(error) == message
    except ValidationError:
        return False
    return False
