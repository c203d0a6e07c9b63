"""Muon: the momentum of a matrix, made orthogonal; AdamW for what is no matrix of a block.

Query, key, value, gate and up are matrices of their own, as its author has them; a matrix whose
rows or columns have two dimensions, heads and their width, is one matrix.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; Liu et al. 2025,
arXiv:2502.16982, section 2.2 (``scale = "rms"``).
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from megalite.config.section import Section
from megalite.distributed.mesh import Axis
from megalite.layers.shards import local_box, local_part
from megalite.torch_private import has_bf16_units
from megalite.training.updates.orthogonal import operations, orthogonalised
from megalite.training.updates.rule import Rule, Weight, finite_gradient
from megalite.training.updates.whole import WholeMatrices

RMS = 0.2  # of AdamW's updates, which "rms" gives a matrix's


class MuonConfig(Section):
    """Muon's numbers. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/."""

    momentum: float = Field(0.95, ge=0, lt=1, description="decay of the gradients' running mean")
    nesterov: bool = Field(
        True, description="whether the gradient is mixed into its mean once more"
    )
    iterations: int = Field(5, ge=1, description="Newton-Schulz steps that orthogonalise a matrix")
    scale: Literal["rms", "original"] = Field(
        "rms",
        description="size of a matrix's update; rms: 0.2 sqrt(the larger side), about AdamW's, so "
        "that both take one learning rate (arXiv:2502.16982); original: sqrt(max(1, rows / "
        "columns))",
    )
    adamw_rate: float = Field(
        1.0,
        gt=0,
        description="learning rate of embeddings, head, norms and biases, which AdamW updates, as "
        "a share of optimizer.learning_rate",
    )
    products: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="number format of the Newton-Schulz products: bf16 as published, fp32, or "
        "auto: bf16 where the GPU or the CPU has units for it, else fp32",
    )


class Muon(Rule):
    """Muon over matrices, and AdamW over all else, as one optimizer."""

    def __init__(
        self,
        weights: Sequence[Weight],
        rest: torch.optim.AdamW | None,
        settings: dict[str, float],
        config: MuonConfig,
        axis: Axis,
    ) -> None:
        """Make the matrices' state, ``momentum_buffer``, and take over that of the rest.

        Comm: all-gather of which pieces of the matrices each process has.

        Args:
            weights: the matrices.
            rest: of everything else, with its state; None: there is nothing else.
            settings: ``lr`` and ``weight_decay`` of the matrices.
            config: its numbers.
            axis: the processes that hold this process's part of the model.
        """
        parameters = [weight.parameter for weight in weights]
        group = {"params": parameters, "weight_decay": settings["weight_decay"]}
        super().__init__([group], settings["lr"])
        self._config, self._rest = config, rest
        self._device = parameters[0].device
        self._dtype = product_dtype(config.products, self._device)
        self._sides = [sides_of(weight) for weight in weights]
        self._whole = WholeMatrices(
            [tuple(parameter.shape) for parameter in parameters],
            [local_box(parameter) for parameter in parameters],
            [operations(*sides, config.iterations) for sides in self._sides],
            axis,
        )
        for parameter in parameters:
            self.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
        if rest is not None:  # one list of groups and one state, as of one optimizer
            self.param_groups += rest.param_groups
            self.state.update(rest.state)
            rest.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters; the matrices' gradients are written over.

        Comm: two all-to-alls, of about what this process holds of the matrices.
        """
        group, goes = self.param_groups[0], self._goes(self._device)
        directions = [self._direction(parameter, goes) for parameter in group["params"]]
        updates = self._whole.work(directions, self._orthogonalised)
        for parameter, update, sides in zip(group["params"], updates, self._sides, strict=True):
            local, rate = local_part(parameter), group["lr"] * goes
            local.mul_(1.0 - rate * group["weight_decay"])
            local.addcmul_(update.to(local.dtype), rate, value=-self._scale(*sides))
        if self._rest is not None:
            self._rest.found_inf = self.found_inf  # type: ignore[attr-defined]
            self._rest.step()

    def _direction(self, parameter: nn.Parameter, goes: Tensor) -> Tensor:
        """The momentum of a matrix after this step, what this process holds of it."""
        config, gradient = self._config, finite_gradient(parameter, goes)
        mean = local_part(self.state[parameter]["momentum_buffer"])
        mean.lerp_(gradient, (1.0 - config.momentum) * goes)
        direction = gradient.lerp_(mean, config.momentum) if config.nesterov else mean
        return direction.to(self._dtype)

    def _orthogonalised(self, number: int, whole: Tensor) -> Tensor:
        """A whole matrix made orthogonal, in its own shape."""
        matrix = orthogonalised(whole.reshape(self._sides[number]), self._config.iterations)
        return matrix.reshape(whole.shape)

    def _scale(self, rows: int, columns: int) -> float:
        """What an orthogonal matrix is multiplied by, beside the learning rate."""
        if self._config.scale == "rms":
            return RMS * math.sqrt(max(rows, columns))
        return math.sqrt(max(1.0, rows / columns))


def product_dtype(products: Literal["auto", "fp32", "bf16"], device: torch.device) -> torch.dtype:
    """The number format of the Newton-Schulz products on a device."""
    if products == "auto":
        products = "bf16" if _has_bf16_units(device) else "fp32"
    return torch.bfloat16 if products == "bf16" else torch.float32


def _has_bf16_units(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and has_bf16_units()


def sides_of(weight: Weight) -> tuple[int, int]:
    """Rows and columns of a matrix."""
    shape, rows = weight.parameter.shape, weight.rows
    return math.prod(shape[:rows]), math.prod(shape[rows:])
