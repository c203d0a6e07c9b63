"""A token for each row of logits, from a number of the unit interval."""

import torch
from torch import Tensor

from megalite.ops.backends import row_kernels


def draw_tokens(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The token whose share of the unit interval holds a number, tokens in their order.

    Args:
        logits: [B, V] fp32, -inf where a token can't come.
        uniform: [B] fp64 in (0, 1).
        temperature: divides the logits; above 0.

    Returns:
        The tokens, [B] int64, and their log-probabilities at this temperature, [B] fp32. Shares are
        added up in fp64; a CPU's kernel makes them in fp32.
    """
    ops = row_kernels(logits)
    if ops is not None:
        tokens, log_probs = ops.draw(logits, uniform, temperature)
        return tokens, log_probs
    scaled = logits if temperature == 1 else logits / temperature
    shares = scaled.double().softmax(-1)
    mass = shares.cumsum(-1)
    target = uniform.to(mass)[:, None] * mass[:, -1:]
    found = torch.searchsorted(mass, target, right=True)
    return found.squeeze(1), shares.gather(1, found).log().squeeze(1).float()
