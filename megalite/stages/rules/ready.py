"""Reward functions that are known by name; a worker's process runs them, so PyTorch isn't needed.

Each is ``(prompt, answer, row) -> float`` once its settings are given, as a user's own are.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from megalite.stages.rules.python_tests import TestLimits, passes_tests

Row = Mapping[str, Any]
Rule = Callable[[str, str, Row], float]
DIGITS = r"(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
NUMBER = re.compile(rf"((?:(?<![\w.)])[-+\u2212])?{DIGITS})(?:\s*/\s*({DIGITS}))?")
LATEX = re.compile(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}")  # \frac{3}{4}
MINUS = "\u2212"  # the typographer's, beside the keyboard's
RELATIVE = 1e-6  # two numbers are equal within it, unless both are whole
READY = ("exact_match", "numeric_answer", "regular_expression", "length", "python_tests")
READS_COLUMN = ("exact_match", "numeric_answer", "python_tests")


@dataclass(frozen=True)
class Settings:
    """What the functions are told.

    Attributes:
        column: the key of a row that has the right answer.
        tests: the key of a row that has Python tests.
        pattern: a regular expression.
        length: characters.
        limits: of tests.
    """

    column: str
    tests: str
    pattern: str
    length: int
    limits: TestLimits

    def column_of(self, name: str) -> str | None:
        """The key of a row that a function reads."""
        if name not in READS_COLUMN:
            return None
        return self.tests if name == "python_tests" else self.column


def ready_rule(name: str, settings: Settings) -> Rule:
    """A function by its name, one of ``READY``."""
    if name == "exact_match":
        return partial(_exact_match, column=settings.column)
    if name == "numeric_answer":
        return partial(_numeric_answer, column=settings.column)
    if name == "regular_expression":
        return partial(_regular_expression, pattern=re.compile(settings.pattern))
    if name == "length":
        return partial(_length, length=settings.length)
    return partial(_python_tests, column=settings.tests, limits=settings.limits)


def fault_of_row(name: str, settings: Settings, row: Row) -> str | None:
    """Why a function can't judge the answers of a row; None where it can."""
    column = settings.column_of(name)
    if column is None:
        return None
    if row.get(column) is None:
        has = ", ".join(map(repr, row)) or "none"
        key = "tests" if name == "python_tests" else "column"
        return f"has no {column!r}, there is {has}; reward.rules.{key} names another"
    value = row[column]
    if name == "python_tests":
        lines = value if isinstance(value, list) and value else [value]
        if all(isinstance(line, str) for line in lines):
            return None
        return f"{column!r} must be Python code, or a list of it, came {type(value).__name__}"
    if not (isinstance(value, (str, int, float, list)) and value != []):
        return f"{column!r} must be text, a number or a list of them, came {type(value).__name__}"
    if name == "numeric_answer" and None in map(last_number, _right(value)):
        return f"{column!r} must have a number, came {str(value)[:40]!r}"
    return None


def last_number(text: str) -> float | None:
    """The last number of a text, its thousands perhaps divided by commas; None without one.

    A fraction, such as 3/4, is one number.
    """
    found = NUMBER.findall(LATEX.sub(r"\1/\2", text))
    if not found:
        return None
    above, below = (float(part.replace(",", "").replace(MINUS, "-") or 1) for part in found[-1])
    return above / below if below else below


def _right(value: Any) -> list[str]:
    """The right answers of a row: one, or a list of several.

    A whole number is right without its .0, which columns of numbers with gaps have.
    """
    several = value if isinstance(value, list) else [value]
    whole = [str(int(one)) for one in several if isinstance(one, float) and one.is_integer()]
    return [*(str(one).strip() for one in several), *whole]


def _exact_match(_prompt: str, answer: str, row: Row, column: str) -> float:
    return float(answer.strip() in _right(row[column]))


def _numeric_answer(_prompt: str, answer: str, row: Row, column: str) -> float:
    given = last_number(answer)
    right = map(last_number, _right(row[column]))
    return float(
        given is not None and any(one is not None and _is_same(given, one) for one in right)
    )


def _is_same(given: float, right: float) -> bool:
    if given.is_integer() and right.is_integer():
        return given == right
    return math.isclose(given, right, rel_tol=RELATIVE)


def _regular_expression(_prompt: str, answer: str, _row: Row, pattern: re.Pattern[str]) -> float:
    return float(pattern.search(answer) is not None)


def _length(_prompt: str, answer: str, _row: Row, length: int) -> float:
    return max(0.0, 1 - abs(len(answer) - length) / length)


def _python_tests(_prompt: str, answer: str, row: Row, column: str, limits: TestLimits) -> float:
    tests = row[column]
    return float(
        passes_tests(answer, tests if isinstance(tests, str) else "\n".join(tests), limits)
    )
