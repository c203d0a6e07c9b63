"""Windows in published configs: ``sliding_window``, and which layers have it by ``layer_types``."""

from collections.abc import Sequence
from typing import Any

from megalite.models.config import ModelConfig

_FULL, _SLIDING = "full_attention", "sliding_attention"


def read_windows(theirs: dict[str, Any], default: list[bool], width: int = 0) -> tuple[int, ...]:
    """Our ``windows`` of a config.

    Args:
        theirs: a config.
        default: whether each layer has a window, where the config doesn't list ``layer_types``.
        width: where the config has no ``sliding_window``; a null there is no window.

    Raises:
        ValueError: a kind of layer is not known, or their number is another than the layers'.
    """
    window = theirs.get("sliding_window", width)
    kinds = theirs.get("layer_types") or [_SLIDING if has else _FULL for has in default]
    unknown = sorted(set(kinds) - {_FULL, _SLIDING})
    if unknown:
        raise ValueError(f"layer_types {unknown[0]!r}: must be {_FULL} or {_SLIDING}")
    if len(kinds) != len(default):
        raise ValueError(f"layer_types must have {len(default)} layers, came {len(kinds)}")
    if not window or _SLIDING not in kinds:
        return ()
    return shortest_windows([window if kind == _SLIDING else 0 for kind in kinds])


def shortest_windows(layers: Sequence[int]) -> tuple[int, ...]:
    """The shortest pattern that gives these layers' windows when it is repeated; () for none."""
    if not any(layers):
        return ()
    for length in range(1, len(layers)):
        if all(window == layers[i % length] for i, window in enumerate(layers)):
            return tuple(layers[:length])
    return tuple(layers)


def write_windows(config: ModelConfig) -> dict[str, Any]:
    """The inverse of :func:`read_windows`; of several widths only the largest can be said."""
    windows = [config.window_of(layer) for layer in range(config.num_layers)]
    return {
        "sliding_window": max(windows) or None,
        "layer_types": [_SLIDING if window else _FULL for window in windows],
    }
