"""Adafactor: a second moment kept as the sums of a matrix's rows and columns, or whole.

T5's form (arXiv:1910.10683) has the defaults of :class:`AdafactorConfig`. PaLM's (arXiv:2204.02311,
section 5) is ``factor_from = 0``, ``momentum = 0.9``, ``clip = 0``, ``decay_exponent = 2``.

Query, key and value are matrices of their own here, gate and up too, as they are variables of their
own in T5: each has its own statistics, scale and clipping. A matrix whose rows or columns have two
dimensions, heads and their width, is one matrix, as in T5.

Source: Shazeer & Stern 2018, arXiv:1804.04235, algorithms 4 and 5.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from megalite.config.section import Section
from megalite.distributed.mesh import Mesh
from megalite.layers.shards import local_part
from megalite.training.updates.rule import Rule, Weight, finite_gradient
from megalite.training.updates.shares import Piece, cut_axes, statistic_of, sum_pieces

TINY = 1e-30  # added to a squared gradient: the paper's epsilon 1


class AdafactorConfig(Section):
    """Adafactor's numbers. Shazeer & Stern 2018, arXiv:1804.04235."""

    factor_from: int = Field(
        128,
        ge=0,
        description="least rows and columns of a matrix whose second moment is kept as their "
        "means; 0: all second moments are kept whole",
    )
    decay_power: float = Field(
        0.8, gt=0, description="x of the second moment's decay in step k, 1 - k^-x"
    )
    momentum: float = Field(
        0.0, ge=0, lt=1, description="decay of the updates' running mean; 0: none is kept"
    )
    clip: float = Field(
        1.0, ge=0, description="largest root mean square of an update before its scale; 0: any"
    )
    scale_by_parameter: bool = Field(
        True,
        description="whether a parameter's learning rate is multiplied by its root mean square",
    )
    least_scale: float = Field(
        1e-3, gt=0, description="least root mean square that it is multiplied by"
    )
    decay_exponent: float = Field(
        1.0,
        gt=0,
        description="power of the learning rate in a step's weight decay, weight_decay * rate^x; "
        "2: PaLM's",
    )


def is_factored(config: AdafactorConfig, shape: Sequence[int], rows: int) -> bool:
    """Whether the second moment of a parameter is kept as means of its rows and columns."""
    sizes = math.prod(shape[:rows]), math.prod(shape[rows:])
    return rows > 0 and 0 < config.factor_from <= min(sizes)


@dataclass(frozen=True)
class _Update:
    """A parameter in the middle of a step; all tensors are what this process holds.

    Attributes:
        weight: the parameter.
        gradient: becomes the update.
        goes: see :meth:`Rule._goes`.
        mixed: share of this step's squares in the second moment, fp32 scalar.
    """

    weight: Weight
    gradient: Tensor
    goes: Tensor
    mixed: Tensor

    @property
    def axes(self) -> frozenset[str]:
        """The axes over which the parameter is cut."""
        parameter = self.weight.parameter
        return cut_axes(parameter, range(parameter.dim()))


class Adafactor(Rule):
    """Adafactor over parameters whose pieces may be on several processes."""

    def __init__(
        self,
        weights: Sequence[Weight],
        groups: Sequence[dict[str, Any]],
        learning_rate: float,
        config: AdafactorConfig,
        mesh: Mesh,
    ) -> None:
        """Make the state.

        Args:
            weights: all parameters.
            groups: the same with their weight decay.
            learning_rate: until it is set.
            config: its numbers.
            mesh: over which parameters are cut.
        """
        super().__init__(groups, learning_rate)
        self._config, self._mesh = config, mesh
        self._weights = {weight.parameter: weight for weight in weights}
        for weight in weights:
            self.state[weight.parameter] = self._first_state(weight)

    def _first_state(self, weight: Weight) -> dict[str, Tensor]:
        parameter, rows = weight.parameter, weight.rows or 0
        state = {"step": torch.zeros((), device=parameter.device)}
        if is_factored(self._config, parameter.shape, rows):
            state["exp_avg_sq_row"] = statistic_of(parameter, range(rows))
            state["exp_avg_sq_col"] = statistic_of(parameter, range(rows, parameter.dim()))
        else:
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        if self._config.momentum:
            state["exp_avg"] = torch.zeros_like(parameter)
        return state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters; their gradients are written over.

        Comm: an all-reduce over shard and one over tp of the sums of rows and columns that are cut
        there, and the same of a number a parameter.
        """
        updates = [self._begin(parameter) for parameter, _ in self._learned()]
        parts = [self._pieces(update) for update in updates]
        sums = iter(sum_pieces([piece for part in parts for piece in part], self._mesh))
        for update, part in zip(updates, parts, strict=True):
            self._divide(update, [next(sums) for _ in part])
        scales = self._scales(updates)
        for update, scale, (parameter, group) in zip(updates, scales, self._learned(), strict=True):
            self._apply(update, scale, parameter, group)

    def _begin(self, parameter: nn.Parameter) -> _Update:
        """Count a step of a parameter."""
        goes, step = self._goes(parameter.device), self.state[parameter]["step"]
        gradient = finite_gradient(parameter, goes)
        mixed = (step + 1.0) ** -self._config.decay_power
        step.add_(goes)
        return _Update(self._weights[parameter], gradient, goes, mixed)

    def _pieces(self, update: _Update) -> list[Piece]:
        """What a factored second moment needs of all pieces: squares by row, by column and in all.

        The mean of the rows' means so far is summed with them, which spares a second reduction.
        """
        parameter, rows = update.weight.parameter, update.weight.rows or 0
        state = self.state[parameter]
        if "exp_avg_sq_row" not in state:
            return []
        dims = range(parameter.dim())
        of_rows, of_columns = cut_axes(parameter, dims[:rows]), cut_axes(parameter, dims[rows:])
        squares = update.gradient.square()
        return [
            (squares.sum(list(dims[rows:])), of_columns),
            (squares.sum(list(dims[:rows])), of_rows),
            (squares.sum(), of_rows | of_columns),
            (local_part(state["exp_avg_sq_row"]).sum(), of_rows),
        ]

    def _divide(self, update: _Update, sums: Sequence[Tensor]) -> None:
        """Advance the second moment and divide the gradient by its root."""
        parameter, gradient = update.weight.parameter, update.gradient
        state = self.state[parameter]
        if not sums:
            moment = local_part(state["exp_avg_sq"])
            moment.lerp_(gradient.square().add_(TINY), update.mixed * update.goes)
            gradient.mul_(moment.clamp(min=TINY).rsqrt_())
            return
        by_row, by_column, total, before = sums
        rows = update.weight.rows or 0
        num_rows, num_columns = math.prod(parameter.shape[:rows]), math.prod(parameter.shape[rows:])
        mean = torch.lerp(before / num_rows, total / parameter.numel() + TINY, update.mixed)
        means = []
        for key, sum_, count in (("row", by_row, num_columns), ("col", by_column, num_rows)):
            moment = local_part(state[f"exp_avg_sq_{key}"])
            means.append(torch.lerp(moment, sum_ / count + TINY, update.mixed))
            moment.copy_(torch.where(update.goes > 0, means[-1], moment))
        row, column = means
        gradient.mul_((row / mean).rsqrt_().view(*row.shape, *[1] * column.dim()))
        gradient.mul_(column.rsqrt_())

    def _scales(self, updates: Sequence[_Update]) -> list[Tensor]:
        """What each update is multiplied by, beside the learning rate: scalars."""
        config, pieces = self._config, []
        for update in updates:
            if config.clip:
                pieces.append((update.gradient.square().sum(), update.axes))
            if config.scale_by_parameter:
                pieces.append((local_part(update.weight.parameter).square().sum(), update.axes))
        sums, scales = iter(sum_pieces(pieces, self._mesh)), []
        for update in updates:
            scale, count = update.goes, update.weight.parameter.numel()
            if config.clip:
                scale = scale / ((next(sums) / count).sqrt() / config.clip).clamp(min=1.0)
            if config.scale_by_parameter:
                scale = scale * (next(sums) / count).sqrt().clamp(min=config.least_scale)
            scales.append(scale)
        return scales

    def _apply(
        self, update: _Update, scale: Tensor, parameter: nn.Parameter, group: dict[str, Any]
    ) -> None:
        config, goes, local = self._config, update.goes, local_part(parameter)
        step = update.gradient.mul_(group["lr"] * scale)
        if config.momentum:
            mean = local_part(self.state[parameter]["exp_avg"])
            step = mean.lerp_(step, (1.0 - config.momentum) * goes)
        if group["weight_decay"]:
            decay = group["weight_decay"] * group["lr"] ** config.decay_exponent
            local.mul_(1.0 - decay * goes)
        local.addcmul_(step, goes, value=-1.0)
