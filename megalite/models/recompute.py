"""Activation recompute: which blocks make their activations again in the backward pass."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    create_selective_checkpoint_contexts,
)

_PRODUCTS = ("mm", "addmm", "bmm", "attention")


def _keep_products(_context: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    """Keep what matrix products and attention gave; make all else again."""
    name = op._schema.name.split("::")[-1] if isinstance(op, torch._ops.OpOverload) else ""
    return CheckpointPolicy.MUST_SAVE if name in _PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


@dataclass(frozen=True)
class Recompute:
    """Recompute of a stack.

    Attributes:
        kind: none, all activations (full), or all but matrix products and attention (selective).
        blocks: how many blocks, from the first of the stack here; 0 is all.

    Source: Chen et al. 2016, arXiv:1604.06174; Korthikanti et al. 2022, arXiv:2205.05198.
    """

    kind: Literal["none", "selective", "full"] = "none"
    blocks: int = 0

    def covers(self, number: int) -> bool:
        """Whether block ``number`` of the stack recomputes."""
        return self.kind != "none" and (self.blocks == 0 or number < self.blocks)

    def options(self) -> dict[str, Any]:
        """Arguments of ``torch.utils.checkpoint.checkpoint``; dropout needs no saved state."""
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        if self.kind == "selective":
            options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_products)
        return options
