"""Blocks whose training passes PyTorch compiles: fewer launches between the kernels.

The kernels are operators of the traced code, as they are. All blocks of a kind are one traced
block, traced again once for sequences of other lengths.
"""

import importlib.util
import shutil
from collections.abc import Callable

import torch
from torch import Tensor

from megalite.distributed.mesh import ParallelConfig
from megalite.errors import ConfigError
from megalite.models.block import Block
from megalite.models.config import ModelConfig
from megalite.models.context import Context
from megalite.models.transformer import Transformer

CPU_COMPILERS = ("g++", "clang++")
RunBlock = Callable[[Tensor, Context, Tensor | None], Tensor]


def check_compiles(config: ModelConfig, parallel: ParallelConfig, device: torch.device) -> None:
    """Refuse what a compiled block can't do, or can't do as it is asked.

    Raises:
        ConfigError: it names the key, the reason and what to do.
    """
    said = ""
    if parallel.tp > 1:
        said = f"parallel.tp {parallel.tp}: collectives inside of a block are not traced"
    elif parallel.pp > 1:
        said = f"parallel.pp {parallel.pp}: a pipeline's schedule is not traced"
    elif parallel.recompute == "selective":
        said = "parallel.recompute selective: products in compiled code can't be kept"
    elif config.drops:
        said = "model.dropout or model.attention_dropout: each step's seed would compile anew"
    if said:
        raise ConfigError(f"--train.compile: can't be with {said}: leave one of them out")
    if device.type == "cpu" and not any(map(shutil.which, CPU_COMPILERS)):
        raise ConfigError(
            f"--train.compile: needs a C++ compiler on a CPU ({' or '.join(CPU_COMPILERS)}): "
            "install one, or leave it out"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigError(
            "--train.compile: needs triton on a GPU: `pip install triton`, or leave it out"
        )


def compile_blocks(part: Transformer, backend: str = "inductor") -> None:
    """Compile each block's training passes; passes without a gradient run as they are.

    Args:
        part: of a model, before it is sharded.
        backend: of ``torch.compile``.
    """
    for block in part.blocks():
        block.forward = _forward(block, backend)  # type: ignore[assignment, method-assign]


def _forward(block: Block, backend: str) -> RunBlock:
    eager: RunBlock = block.forward
    compiled: RunBlock = torch.compile(eager, backend=backend)
    window = block.attention.window

    def forward(x: Tensor, context: Context, memory: Tensor | None = None) -> Tensor:
        if context.cache is not None or not torch.is_grad_enabled():
            return eager(x, context, memory)
        for mask in (context.mask.narrowed(window, context.looks_both_ways), context.cross):
            if mask is not None:
                _ = mask.plan  # once a batch, outside of what is traced
        return compiled(x, context, memory)

    return forward
