"""Fixed embeddings of positions: sines in the first half of the features, cosines in the second."""

from functools import lru_cache

import torch
from torch import Tensor

BASE = 10000.0


@lru_cache(maxsize=4)
def sinusoids(rows: int, width: int, device: torch.device) -> Tensor:
    """The table [rows, width], fp32; made once for each device.

    Of an odd width the sines have one feature more.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5, with the features in the order of
    Pegasus' published code.
    """
    exponents = 2 * torch.arange((width + 1) // 2, dtype=torch.float64) / width
    angles = torch.arange(rows, dtype=torch.float64)[:, None] / BASE**exponents
    table = torch.cat([angles.sin(), angles[:, : width // 2].cos()], dim=1)
    return table.float().to(device)
