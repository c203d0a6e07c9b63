"""What the update rules share: parameters as matrices, and a step that may turn out to be none."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megalite.engine.lora import owner_and_name
from megalite.engine.model import Model
from megalite.errors import ConfigError
from megalite.layers.layer import Layer
from megalite.layers.shards import gradient_of, local_part
from megalite.models.transformer import Transformer


@dataclass(frozen=True)
class Weight:
    """A parameter as an update rule sees it.

    Attributes:
        name: in the whole model, or in the guest that it is of.
        parameter: this process's share of it.
        rows: its leading dimensions that number the rows of a matrix, the others number columns;
            0: it is a vector, whatever its dimensions; None: nobody said.
    """

    name: str
    parameter: nn.Parameter
    rows: int | None

    @property
    def is_hidden(self) -> bool:
        """Whether it is a matrix of a block: no embedding, table, head, norm or bias."""
        return bool(self.rows) and ".layers." in self.name

    @property
    def role(self) -> str:
        """Which of ``optimizer.decayed`` it is."""
        if self.parameter.dim() < 2 or self.name.endswith("bias"):
            return "vectors"
        if ".layers." not in self.name:
            for role in ("embedding", "positions", "relative", "head"):
                if role in self.name.split("."):
                    return role
        return "blocks"


def weights_of(model: Model) -> list[Weight]:
    """The parameters of this process that learn; one that two of its parts hold comes twice."""
    own = {id(parameter) for parameter in model.parameters()}
    found = (weight for part in model.parts for weight in weights_in(part))
    return [weight for weight in found if id(weight.parameter) in own]


def weights_in(part: Transformer) -> Iterator[Weight]:
    """The parameters of a part of a model that learn, those of guests among them."""
    declared: dict[int, int] = {}
    for module in part.modules():
        if isinstance(module, Layer):
            for name, parameter in module.named_parameters(recurse=False):
                declared[id(parameter)] = module.rows[name]
    for name, parameter in part.named_parameters():
        if parameter.requires_grad:
            rows = declared.get(id(parameter), None if parameter.dim() > 1 else 0)
            yield Weight(owner_and_name(name)[1], parameter, rows)


def check_rules(weights: Iterable[Weight], kind: str) -> None:
    """Refuse a rule that reads matrices for a parameter whose rows and columns nobody declared.

    Raises:
        ConfigError: it names the first such parameter.
    """
    for weight in weights:
        if weight.rows is None:
            raise ConfigError(
                f"--optimizer.kind {kind}: has no rule for {weight.name} "
                f"{list(weight.parameter.shape)}, which is neither a vector nor declared as a "
                "matrix: use adamw or lion"
            )


class Rule(torch.optim.Optimizer):
    """An optimizer that reads on the device whether its step changes anything, as fused AdamW does.

    Attributes:
        found_inf: fp32 scalar: 1 where the next step is to change nothing, its counts included.
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: Sequence[dict[str, Any]], learning_rate: float) -> None:
        """Hold parameters.

        Args:
            groups: with ``params`` and ``weight_decay``.
            learning_rate: until :func:`megalite.training.optimizer.set_rate`.
        """
        super().__init__([dict(group) for group in groups], {"lr": learning_rate})

    def _goes(self, device: torch.device) -> Tensor:
        """1 where this step is done, 0 where it changes nothing: fp32 scalar."""
        if self.found_inf is None:
            return torch.ones((), device=device)
        return 1.0 - self.found_inf

    def _learned(self) -> Iterator[tuple[nn.Parameter, dict[str, Any]]]:
        """The parameters that have a gradient, with their groups."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    yield parameter, group


def finite_gradient(parameter: nn.Parameter, goes: Tensor) -> Tensor:
    """What this process holds of a gradient, to be written over; 0 where the step is none."""
    return local_part(gradient_of(parameter)).masked_fill_(goes < 1, 0.0)
