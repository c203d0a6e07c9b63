"""From next-token logits to a token: penalties, truncation, and draws that no layout changes."""

import torch
from pydantic import Field
from torch import Tensor

from megalite.config import Section
from megalite.ops.random import philox


class SamplingConfig(Section):
    """How the next token is chosen."""

    max_new_tokens: int = Field(128, gt=0, description="most tokens of an answer")
    temperature: float = Field(
        1.0, ge=0, description="divisor of the logits; 0: always the likeliest token"
    )
    top_k: int = Field(0, ge=0, description="number of likeliest tokens to draw from; 0: all")
    top_p: float = Field(
        1.0, gt=0, le=1, description="probability of the likeliest tokens to draw from; 1: all"
    )
    repetition_penalty: float = Field(
        1.0,
        gt=0,
        description="divisor of positive and factor of negative logits of tokens that came before; "
        "1: none",
    )
    seed: int = Field(0, ge=0, description="seed of the draws")


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens that are already in the sequence less likely.

    Args:
        logits: [B, V] fp32.
        seen: [B, V] bool, tokens of each sequence.
        penalty: above 1 makes them less likely.

    Source: Keskar et al. 2019, arXiv:1909.05858, section 4.1.
    """
    if penalty == 1:
        return logits
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set all but the ``k`` largest logits of [B, V] to -inf; ties with the k-th stay."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    smallest = logits.topk(k).values[..., -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest likeliest tokens of [B, V] whose probability reaches ``p``, at least one."""
    if p >= 1:
        return logits
    ordered, order = logits.sort(descending=False)
    dropped = ordered.softmax(-1).cumsum(-1) <= 1 - p
    dropped[..., -1] = False
    return logits.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)


def truncate(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Logits [B, V] after temperature, top-k and top-p, in this order."""
    logits = logits / config.temperature
    return keep_top_p(keep_top_k(logits, config.top_k), config.top_p)


def draw(logits: Tensor, seed: int, sample_ids: Tensor, index: int) -> Tensor:
    """Draw a token for each sequence; its random number is a function of what is drawn.

    Args:
        logits: [B, V] fp32, -inf where a token can't come.
        seed: 64-bit key.
        sample_ids: [B] int64, the sample of each sequence.
        index: number of the token in its answer.

    Returns:
        [B] int64.
    """
    zero = torch.zeros_like(sample_ids)
    high, low, _, _ = philox(seed, zero + index, zero, sample_ids >> 32, sample_ids & 0xFFFFFFFF)
    return pick(logits, unit_interval(high, low))


def unit_interval(high: Tensor, low: Tensor) -> Tensor:
    """Two 32-bit words as an fp64 number in (0, 1); below 1 after rounding too."""
    return (((high << 20) + (low >> 12)).double() + 0.5) * 2.0**-52


def pick(logits: Tensor, uniform: Tensor) -> Tensor:
    """The token of [B, V] ``logits`` whose share of the unit interval holds ``uniform`` [B]."""
    mass = logits.double().softmax(-1).cumsum(-1)
    target = uniform.to(mass)[:, None] * mass[:, -1:]
    return torch.searchsorted(mass, target, right=True).squeeze(1)


def choose(logits: Tensor, config: SamplingConfig, sample_ids: Tensor, index: int) -> Tensor:
    """The next token of each sequence, [B] int64, from ``logits`` [B, V] fp32 after penalties."""
    if config.temperature == 0:
        return logits.argmax(-1)
    return draw(truncate(logits, config), config.seed, sample_ids, index)
