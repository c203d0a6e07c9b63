"""AdamW over a model's parameters, wherever their pieces are; state by parameter name."""

import torch
from torch import Tensor

from megalite.engine.model import Model
from megalite.errors import ConfigError
from megalite.training.config import OptimizerConfig


def build_optimizer(model: Model, config: OptimizerConfig) -> torch.optim.Optimizer:
    """An optimizer with its state made, so that a checkpoint has a place for every tensor.

    Raises:
        ConfigError: apex is asked for and NVIDIA's is not installed.
    """
    named: dict[int, str] = {id(p): name for name, p in model.named_parameters()}
    parameters = list(model.parameters())
    decayed = [p for p in parameters if p.dim() > 1 and not named.get(id(p), "").endswith("bias")]
    chosen = {id(p) for p in decayed}
    others = [p for p in parameters if id(p) not in chosen]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    betas = (config.beta1, config.beta2)
    if config.kind == "apex":
        optimizer = apex_adam()(groups, lr=config.learning_rate, betas=betas, eps=config.eps)
    else:
        optimizer = torch.optim.AdamW(
            groups, lr=config.learning_rate, betas=betas, eps=config.eps, fused=True
        )
        _make_state(optimizer)
    return optimizer


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

    AdamW reads the flag on the device and then changes nothing, its count of steps included. Apex
    is told by the host, which waits for the flag.
    """
    if isinstance(optimizer, torch.optim.AdamW):
        flag = bad.float()  # only 1 means that it is
        optimizer.found_inf = flag  # type: ignore[attr-defined]
        optimizer.step()
    elif not bool(bad):
        optimizer.step()


def named_state(model: Model, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors under ``name.key``."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
