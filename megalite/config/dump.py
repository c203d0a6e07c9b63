"""Write a config as commented TOML that loads back to the same config."""

import json
import math
import textwrap
from enum import Enum
from pathlib import Path

from megalite.config.load import NONE
from megalite.config.section import Section, section_class

WIDTH = 100


def dump(config: Section) -> str:
    """Write every value of ``config`` under its description."""
    return "\n".join(_table(type(config), config, "")).strip() + "\n"


def describe(cls: type[Section]) -> str:
    """Write the defaults of a config class; a key without a default is a comment."""
    return "\n".join(_table(cls, None, "")).strip() + "\n"


def _table(cls: type[Section], section: Section | None, prefix: str) -> list[str]:
    """Write one section, plain values first, as TOML asks; ``section`` None means the defaults."""
    lines: list[str] = []
    inner: list[str] = []
    for name, field in cls.model_fields.items():
        comment = [f"# {line}" for line in textwrap.wrap(field.description or "", WIDTH - 2)]
        missing = section is None and field.is_required()
        if section is not None:
            value = getattr(section, name)
        else:
            value = None if missing else field.get_default(call_default_factory=True)
        unset = section_class(field.annotation) if missing else None
        below = type(value) if isinstance(value, Section) else unset
        if below is not None:
            inner += ["", *comment, f"[{prefix}{name}]"]
            inner += _table(below, value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Section):
            for item in value:
                inner += ["", *comment, f"[[{prefix}{name}]]"]
                inner += _table(type(item), item, f"{prefix}{name}.")
        elif missing:
            lines += [*comment, f"# {name} =   (must be set)"]
        else:
            lines += [*comment, f"{name} = {format_value(value)}"]
    return lines + inner


def format_value(value: object) -> str:
    """Write one value in TOML's notation."""
    if isinstance(value, Enum):
        value = value.value
    if value is None:
        return f'"{NONE}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, (str, Path)):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        pairs = ", ".join(f"{json.dumps(k)} = {format_value(v)}" for k, v in value.items())
        return "{ " + pairs + " }" if pairs else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(format_value(item) for item in value) + "]"
    return repr(value)
