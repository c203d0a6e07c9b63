"""The optimizer of a model's parameters, wherever their pieces are; state by parameter name."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from megalite.distributed.mesh import place_axis
from megalite.engine.model import Model
from megalite.errors import ConfigError
from megalite.training.config import OptimizerConfig
from megalite.training.updates.adafactor import Adafactor
from megalite.training.updates.lion import Lion
from megalite.training.updates.muon import Muon
from megalite.training.updates.rule import Rule, Weight, check_rules, weights_of


def build_optimizer(model: Model, config: OptimizerConfig) -> torch.optim.Optimizer:
    """An optimizer of what learns, with its state made: a checkpoint has a place for every tensor.

    Comm: of muon, see :class:`Muon`.

    Raises:
        ConfigError: apex is asked for and NVIDIA's is not installed, or a rule is asked for that a
            parameter has no rule for.
    """
    weights, rate = weights_of(model), config.learning_rate
    groups = _groups(weights, config)
    if config.kind == "adamw":
        return _adamw(groups, config)
    if config.kind == "apex":
        betas = (config.beta1, config.beta2)
        return apex_adam()(groups, lr=rate, betas=betas, eps=config.eps)
    if config.kind == "lion":
        return Lion(groups, rate, config.lion)
    check_rules(weights, config.kind)
    if config.kind == "adafactor":
        return Adafactor(weights, groups, rate, config.adafactor, model.mesh)
    return _muon(model, weights, config)


def _groups(weights: Sequence[Weight], config: OptimizerConfig) -> list[dict[str, Any]]:
    """The parameters that decay, and the others."""
    decayed = [weight.parameter for weight in weights if weight.role in config.decayed]
    others = [weight.parameter for weight in weights if weight.role not in config.decayed]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _adamw(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.AdamW:
    """PyTorch's fused AdamW with its state."""
    betas, rate = (config.beta1, config.beta2), config.learning_rate
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=betas, eps=config.eps, fused=True)
    _make_state(optimizer)
    return optimizer


def _muon(model: Model, weights: Iterable[Weight], config: OptimizerConfig) -> Muon:
    """Muon for the matrices of the blocks, AdamW for the rest."""
    matrices = [weight for weight in weights if weight.is_hidden]
    groups = _groups([weight for weight in weights if not weight.is_hidden], config)
    for group in groups:
        group["share"] = config.muon.adamw_rate
    decay = config.weight_decay if "blocks" in config.decayed else 0.0
    settings = {"lr": config.learning_rate, "weight_decay": decay}
    rest = (
        _adamw(groups, config) if groups else None
    )  # adapters are matrices of blocks, all of them
    return Muon(matrices, rest, settings, config.muon, place_axis(model.mesh))


def _make_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the state that AdamW would make in its first step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            device = parameter.device
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def apex_adam() -> type:
    """NVIDIA apex's FusedAdam; PyPI's ``apex`` is something else and has none.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from apex.optimizers import FusedAdam
    except (ImportError, AttributeError):
        raise ConfigError(
            "--optimizer.kind apex: needs apex.optimizers.FusedAdam of NVIDIA apex (PyPI's apex is "
            "an unrelated package): build it from NVIDIA/apex, or use adamw"
        ) from None
    return FusedAdam


def step_unless(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """Do an optimizer's step unless ``bad``, a bool scalar, is true.

    All but apex read the flag on the device and then change nothing, their counts of steps
    included. Apex is told by the host, which waits for the flag.
    """
    if isinstance(optimizer, (torch.optim.AdamW, Rule)):
        flag = bad.float()  # only 1 means that it is
        optimizer.found_inf = flag  # type: ignore[union-attr]
        optimizer.step()
    elif not bool(bad):
        optimizer.step()


def named_state(model: Model, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors under ``name.key``."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate; a group may take a share of it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("share", 1.0)
