"""Activations by the names that published configs give them."""

from typing import Any, Literal

Activation = Literal["relu", "gelu", "gelu_tanh", "silu"]

THEIRS: dict[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",  # the same formula, its constants written out
    "silu": "silu",
    "swish": "silu",
}


def read_activation(theirs: dict[str, Any], key: str, default: str) -> Activation:
    """Our name of the activation that a config has under ``key``.

    Raises:
        ValueError: no model of ours has it.
    """
    name = theirs.get(key) or default
    if name not in THEIRS:
        raise ValueError(f"{key} {name!r}: must be one of {', '.join(THEIRS)}")
    return THEIRS[name]
