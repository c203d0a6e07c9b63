"""How much state an update rule keeps, before anything is built."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from megalite.models.transformer import Transformer
from megalite.training.config import OptimizerConfig
from megalite.training.updates.adafactor import is_factored
from megalite.training.updates.rule import weights_in

AVERAGES = {"adamw": 2, "apex": 2, "lion": 1}  # fp32 numbers a parameter


@dataclass(frozen=True)
class Shape:
    """What the state of a parameter depends on.

    Attributes:
        sizes: of its dimensions.
        rows: see :class:`megalite.training.updates.rule.Weight`.
        is_hidden: likewise.
    """

    sizes: tuple[int, ...]
    rows: int
    is_hidden: bool


def shapes_of(part: Transformer) -> Mapping[Shape, int]:
    """How many parameters of each shape a part has, which may have no storage."""
    return Counter(
        Shape(tuple(weight.parameter.shape), weight.rows or 0, weight.is_hidden)
        for weight in weights_in(part)
    )


def state_numbers(shape: Shape, optimizer: OptimizerConfig) -> tuple[int, int]:
    """fp32 numbers of a parameter's state: those cut as it is, and means of rows and columns."""
    count, kind = math.prod(shape.sizes), optimizer.kind
    if kind == "muon":
        return count * (1 if shape.is_hidden else 2), 0
    if kind != "adafactor":
        return count * AVERAGES[kind], 0
    momentum = count if optimizer.adafactor.momentum else 0
    if not is_factored(optimizer.adafactor, shape.sizes, shape.rows):
        return count + momentum, 0
    rows, columns = shape.sizes[: shape.rows], shape.sizes[shape.rows :]
    return momentum, math.prod(rows) + math.prod(columns)
