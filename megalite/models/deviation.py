"""Standard deviations of initial weights: a number, or a formula of the model's sizes by role.

Formulas are those of the papers, in the letters of the model: D, F, V, N, G, H, L (decoder blocks),
M (encoder blocks), and ``fan_in``, ``fan_out`` of the matrix; ``xavier`` is sqrt(2 / (fan_in +
fan_out)).
"""

import ast
import math
import operator
import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field

from megalite.config.section import Section

LETTERS = ("D", "F", "V", "N", "G", "H", "L", "M")
NAMES = (*LETTERS, "fan_in", "fan_out", "xavier")
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def evaluate(told: float | str, sizes: Mapping[str, float]) -> float:
    """The value of a number or a formula.

    Args:
        told: such as 0.02, ``sqrt(2/5D)`` or ``(2L)^-0.5 xavier``.
        sizes: a number for each of ``NAMES``.

    Raises:
        ValueError: it can't be read, or gives no positive number; the sentence says what can.
    """
    if isinstance(told, float | int):
        return float(told)
    text = told.replace("^", "**")
    text = re.sub(r"(\d+)\s*([A-Z])\b", r"(\1*\2)", text)  # 2/5D is 2/(5 D)
    text = re.sub(r"([A-Z\d)])\s+(?=[a-zA-Z(])", r"\1*", text)
    try:
        value = _value(ast.parse(text.strip(), mode="eval").body, sizes)
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError):
        value = math.nan
    if isinstance(value, complex) or not (0.0 < value < math.inf):
        raise ValueError(
            f"{told!r}: must be a positive number or a formula that gives one, such as "
            f"'sqrt(2/5D)', of {', '.join(NAMES)}, numbers, + - * / ^ and sqrt()"
        )
    return float(value)


def _value(node: ast.expr, sizes: Mapping[str, float]) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.Name) and node.id in sizes:
        return sizes[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, sizes)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left, sizes), _value(node.right, sizes)
        return float(_OPERATORS[type(node.op)](left, right))
    is_root = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "sqrt"
    if is_root and len(node.args) == 1 and not node.keywords:  # type: ignore[attr-defined]
        return math.sqrt(_value(node.args[0], sizes))  # type: ignore[attr-defined]
    raise ValueError


def _checked(told: float | str) -> float | str:
    if isinstance(told, str):
        try:
            told = float(told)
        except ValueError:
            evaluate(told, dict.fromkeys(NAMES, 2.0))
            return told
    if not 0.0 <= told < math.inf:
        raise ValueError(f"{told!r}: must not be negative")
    return told


def _positive(told: float | str) -> float | str:
    if not told:
        raise ValueError(f"{told!r}: must be more than 0")
    return told


Deviation = Annotated[float | str, AfterValidator(_checked)]
PositiveDeviation = Annotated[Deviation, AfterValidator(_positive)]
_OR = "a number or a formula; 0: "


class InitialConfig(Section):
    """Standard deviations of initial weights by role, instead of ``init_std`` and ``scaled_init``.

    What adds to the residual and has one of its own here is not scaled further.
    """

    embedding: Deviation = Field(0.0, description=f"tokens' embedding, {_OR}init_std")
    positions: Deviation = Field(0.0, description=f"learned positions, {_OR}init_std")
    relative: Deviation = Field(0.0, description=f"relative bias, {_OR}init_std")
    query: Deviation = Field(0.0, description=f"query matrices, {_OR}init_std")
    key: Deviation = Field(0.0, description=f"key matrices, {_OR}init_std")
    value: Deviation = Field(0.0, description=f"value matrices, {_OR}init_std")
    attention_output: Deviation = Field(
        0.0, description=f"attention's output matrices, {_OR}init_std, scaled by scaled_init"
    )
    ffn: Deviation = Field(
        0.0, description=f"feed-forward matrices into the inner width, {_OR}init_std"
    )
    ffn_output: Deviation = Field(
        0.0, description=f"feed-forward output matrices, {_OR}init_std, scaled by scaled_init"
    )
    head: Deviation = Field(0.0, description=f"the head's own matrix, {_OR}init_std")
