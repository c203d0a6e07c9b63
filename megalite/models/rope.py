"""The angles of RoPE, stretched for sequences that are longer than those of training.

Each kind is computed as ``transformers`` computes it, so that a published model gives its numbers.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from megalite.models.config import ModelConfig
from megalite.ops import rope_tables


def rotation(config: ModelConfig, positions: Tensor) -> tuple[Tensor, Tensor] | None:
    """RoPE's tables for positions [B, S] or [B, S, 2], or None for a model without RoPE."""
    if config.position != "rope":
        return None
    if config.rope_axes == 2 and positions.dim() == 2:
        positions = torch.stack((positions, torch.zeros_like(positions)), -1)
    if config.rope_scaling == "linear":
        return rope_tables(positions, config.rotary, config.rope_base, config.rope_scale)
    frequencies = _KINDS[config.rope_scaling](config, positions)
    cos, sin = rope_tables(positions, config.rotary, frequencies=frequencies)
    if config.rope_scaling == "yarn":
        factor = config.rope_attention_factor or _yarn_factor(config.rope_scale)
        cos, sin = cos * factor, sin * factor
    return cos, sin


def window_rotation(
    config: ModelConfig, positions: Tensor, elsewhere: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor] | None:
    """RoPE's tables in layers with a window: those of elsewhere unless they have their own base."""
    if elsewhere is None or not config.rope_window_base:
        return elsewhere
    plain = {"rope_base": config.rope_window_base, "rope_scaling": "linear", "rope_scale": 1.0}
    return rotation(config.model_copy(update=plain), positions)


def _powers(config: ModelConfig, base: float | Tensor, device: torch.device) -> Tensor:
    """``base``, a number or [..., 1], to the power 2i / section: fp32 [..., section / 2]."""
    section = config.rotary // config.rope_axes
    exponent = torch.arange(0, section, 2, dtype=torch.float32, device=device) / section
    return base**exponent


def _dynamic(config: ModelConfig, positions: Tensor) -> Tensor:
    """NTK: the base grows with a document's length, beyond the trained length.

    Rows that are generated one by one turn by the length so far, as the published code does.

    Source: huggingface/transformers #24653, after u/emozilla's post on dynamic NTK scaling.
    """
    trained, factor, section = config.max_positions, config.rope_scale, config.rotary
    lengths = _document_lengths(positions).clamp(min=trained).float()[..., None, None]
    growth = factor * lengths / trained - (factor - 1)
    base = config.rope_base * growth ** (section / (section - 2))  # [B, S, 1, 1]
    return 1.0 / _powers(config, base, positions.device)


def _document_lengths(positions: Tensor) -> Tensor:
    """The length of the document that each row is of: int64 [B, S] for positions [B, S].

    A document begins where positions don't go on.
    """
    goes_on = positions[:, 1:] > positions[:, :-1]
    document = torch.nn.functional.pad(~goes_on, (1, 0)).cumsum(1)  # [B, S]
    most = torch.zeros_like(document).scatter_reduce(1, document, positions.long() + 1, "amax")
    return most.gather(1, document)


def _llama3(config: ModelConfig, positions: Tensor) -> Tensor:
    """LLaMA 3.1: long waves are stretched, short ones stay, those between are interpolated.

    Source: apply_scaling of meta-llama/llama-models, models/llama3/reference_impl/model.py.
    """
    low, high, factor = config.rope_low_factor, config.rope_high_factor, config.rope_scale
    trained = config.rope_trained_positions
    frequencies = 1.0 / _powers(config, config.rope_base, positions.device)
    waves = 2 * math.pi / frequencies
    share = (trained / waves - low) / (high - low)
    between = (1 - share) * frequencies / factor + share * frequencies
    stretched = torch.where(waves > trained / low, frequencies / factor, between)
    return torch.where(waves < trained / high, frequencies, stretched)


def _yarn(config: ModelConfig, positions: Tensor) -> Tensor:
    """YaRN: a ramp over the dimensions from plain to interpolated frequencies.

    Source: Peng et al. 2023, arXiv:2309.00071, section 3.2.
    """
    section, trained = config.rotary // config.rope_axes, config.rope_trained_positions

    def dimension(rotations: float) -> float:
        """The dimension that turns so many times over the trained length."""
        ratio = math.log(trained / (rotations * 2 * math.pi))
        return section * ratio / (2 * math.log(config.rope_base))

    low, high = dimension(config.rope_beta_fast), dimension(config.rope_beta_slow)
    if config.rope_truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, section - 1)
    width = high - low or 0.001
    pairs = torch.arange(section // 2, dtype=torch.float32, device=positions.device)
    ramp = ((pairs - low) / width).clamp(0, 1)
    powers = _powers(config, config.rope_base, positions.device)
    plain, stretched = 1.0 / powers, 1.0 / (config.rope_scale * powers)
    return stretched * ramp + plain * (1 - ramp)


def _yarn_factor(scale: float) -> float:
    """What queries and keys are multiplied by, each: the paper's section 3.3."""
    return 0.1 * math.log(scale) + 1.0 if scale > 1 else 1.0


_KINDS: dict[str, Callable[[ModelConfig, Tensor], Tensor]] = {
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
}
