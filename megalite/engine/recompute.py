"""Activation recompute: which blocks make their activations again in the backward pass.

Source: Chen et al. 2016, arXiv:1604.06174; Korthikanti et al. 2022, arXiv:2205.05198.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from megalite.distributed.mesh import ParallelConfig
from megalite.engine.cut import parts_of
from megalite.models.block import Block
from megalite.models.config import ModelConfig
from megalite.models.context import Context
from megalite.models.transformer import Transformer

_PRODUCTS = {
    "aten.mm",
    "aten.addmm",
    "aten.bmm",
    "megalite.attention",
    "megalite_simt.attention",
    "megalite.capped_attention",
}


def _keep_products(_context: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    """Keep what matrix products and attention gave; make all else again."""
    name = str(op).rpartition(".")[0]  # of aten.mm.default
    return CheckpointPolicy.MUST_SAVE if name in _PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


@dataclass(frozen=True)
class Recompute:
    """What the blocks of each stack make again.

    Attributes:
        kind: none, all activations (full), or all but matrix products and attention (selective).
        blocks: how many blocks, from the first of the stack here; 0 is all.
    """

    kind: Literal["none", "selective", "full"] = "none"
    blocks: int = 0

    def apply_to(self, part: Transformer) -> None:
        """Let the stacks of a part run their blocks so."""
        if self.kind == "none":
            return
        for stack in part.stacks():
            stack.run_block = self._run
            stack.keeps_products = self.kind == "selective"

    def covers(self, number: int) -> bool:
        """Whether block ``number`` of the stack here recomputes."""
        return self.kind != "none" and (self.blocks == 0 or number < self.blocks)

    def _run(
        self, number: int, block: Block, x: Tensor, context: Context, memory: Tensor | None
    ) -> Tensor:
        """Run block ``number`` of a stack; dropout needs no saved state."""
        if not (self.covers(number) and torch.is_grad_enabled()):
            return block(x, context, memory)
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        if self.kind == "selective":
            options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_products)
        return checkpoint(block, x, context, memory, **options)


def recomputed_blocks(config: ModelConfig, parallel: ParallelConfig) -> tuple[int, int]:
    """Encoder and decoder blocks, over all parts, whose whole forward pass is made again."""
    if parallel.recompute != "full":
        return 0, 0
    recompute = Recompute(parallel.recompute, parallel.recompute_blocks)
    parts = parts_of(config, parallel)

    def covered(blocks: tuple[int, int]) -> int:
        return sum(recompute.covers(number) for number in range(blocks[1] - blocks[0]))

    return sum(covered(part.encoder) for part in parts), sum(covered(p.decoder) for p in parts)
