"""Activation recompute: which blocks make their activations again in the backward pass.

Source: Chen et al. 2016, arXiv:1604.06174; Korthikanti et al. 2022, arXiv:2205.05198.
"""

from collections.abc import Callable
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
from megalite.layers.linear import RowParallelLinear
from megalite.models.block import Block
from megalite.models.config import ModelConfig
from megalite.models.context import Context
from megalite.models.transformer import Transformer
from megalite.ops import Dropout

_OPTIONS: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
"""Dropout needs no saved state."""
_ending: list[RowParallelLinear] = []
_PRODUCTS = {
    "aten.mm",
    "aten.addmm",
    "aten.bmm",
    "mkldnn._linear_pointwise",
    "megalite.attention",
    "megalite_simt.attention",
    "megalite.capped_attention",
}


def _keep_products(_context: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    """Keep what matrix products and attention gave, but a sub-layer's last; make all else again."""
    name = str(op).rpartition(".")[0]  # of aten.mm.default
    is_kept = name in _PRODUCTS and not _ending
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE


def _run_keeping_products(sublayer: Callable[..., Any], *arguments: Any) -> Any:
    """Run a sub-layer of a block; what it reads is kept, and what its products give."""
    if not torch.is_grad_enabled():
        return sublayer(*arguments)
    contexts = partial(create_selective_checkpoint_contexts, _keep_products)
    return checkpoint(sublayer, *arguments, context_fn=contexts, **_OPTIONS)


def _ends(layer: RowParallelLinear) -> None:
    """Let a sub-layer's products end with this layer's.

    No gradient is made from its result, which is of all rows until it is summed over tp; and
    PyTorch makes activations again up to the last one that a gradient is made from, so not this.
    """
    multiply = layer.partial

    def run(x: Tensor, random: Dropout | None = None) -> Tensor:
        _ending.append(layer)
        try:
            return multiply(x, random)
        finally:
            _ending.pop()

    layer.partial = run  # type: ignore[method-assign]


def _keep_products_of(block: Block) -> None:
    """Let a block's sub-layers keep their products; those side by side end with the second's."""
    block.run_sublayer = _run_keeping_products
    _ends(block.ffn.output)
    if block.config.parallel_block == "no":
        _ends(block.attention.output)
        if block.cross is not None:
            _ends(block.cross.output)


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
        for stack in part.stacks():
            if self.kind == "full":
                stack.run_block = self._run
            elif self.kind == "selective":
                stack.keeps_products = True
                for number, block in enumerate(stack.blocks()):
                    if self.covers(number):
                        _keep_products_of(block)

    def covers(self, number: int) -> bool:
        """Whether block ``number`` of the stack here recomputes."""
        return self.kind != "none" and (self.blocks == 0 or number < self.blocks)

    def _run(
        self, number: int, block: Block, x: Tensor, context: Context, memory: Tensor | None
    ) -> Tensor:
        """Run block ``number`` of a stack, and all of it again in the backward pass."""
        if not (self.covers(number) and torch.is_grad_enabled()):
            return block(x, context, memory)
        return checkpoint(block, x, context, memory, **_OPTIONS)


def recomputed_blocks(config: ModelConfig, parallel: ParallelConfig) -> tuple[int, int]:
    """Encoder and decoder blocks, over all parts, whose whole forward pass is made again."""
    if parallel.recompute != "full":
        return 0, 0
    recompute = Recompute(parallel.recompute, parallel.recompute_blocks)
    parts = parts_of(config, parallel)

    def covered(blocks: tuple[int, int]) -> int:
        return sum(recompute.covers(number) for number in range(blocks[1] - blocks[0]))

    return sum(covered(part.encoder) for part in parts), sum(covered(p.decoder) for p in parts)
