"""The base of every config section, and how a dotted key finds its field."""

import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class UsualName:
    """Marks a field whose section says ``name`` of itself in what its validator refuses."""

    name: str


class Section(BaseModel):
    """A frozen, strict group of config values; unknown keys are refused.

    Each field has a ``Field(default, description=...)``: a noun phrase with its unit, then what
    each special value means (``"number of processes; 0: one per core"``). Derived numbers are
    properties. A validator that meets an impossible combination raises ``ConfigError``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    lacking: ClassVar[Mapping[str, str]] = {}  # keys of its like that it has not, with the reason

    @classmethod
    def chosen(cls, values: Mapping[str, Any], stage: str) -> "type[Section]":
        """The class of a config, where one command takes several kinds.

        Args:
            values: of it.
            stage: that its recipe names, or empty.
        """
        return cls


def members(annotation: object) -> tuple[object, ...]:
    """The members of a union, or the annotation alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def section_class(annotation: object) -> type[Section] | None:
    """The section that a field holds, alone, in a union or as items of a tuple or list."""
    for member in members(annotation):
        if isinstance(member, type) and issubclass(member, Section):
            return member
        if typing.get_origin(member) in (tuple, list):
            inner = section_class(typing.get_args(member)[0])
            if inner is not None:
                return inner
    return None


def find_field(root: type[Section], path: tuple[str, ...]) -> FieldInfo | None:
    """The field at ``path``, or None where the path leads nowhere."""
    section: type[Section] | None = root
    field = None
    for name in path:
        field = section.model_fields.get(name) if section is not None else None
        if field is None:
            return None
        section = section_class(field.annotation)
    return field


def all_keys(root: type[Section], prefix: str = "") -> Iterator[str]:
    """Yield every dotted key below ``root``."""
    for name, field in root.model_fields.items():
        inner = section_class(field.annotation)
        if inner is None:
            yield prefix + name
        else:
            yield from all_keys(inner, f"{prefix}{name}.")


def named_at(message: str, section: type[Section], own: str, place: str) -> str:
    """A refusal of a section that its class calls ``own``, in the name of where it stands."""
    keys = "|".join(section.model_fields)
    return re.sub(rf"(--|(?<![\w/.])){own}(:|\.(?:{keys})\b)", rf"\1{place}\2", message)
