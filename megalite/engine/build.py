"""Build a model for a layout: cut, sharded, recomputing, then filled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.compiled import check_compiles, compile_blocks
from megalite.engine.cut import parts_of
from megalite.engine.data_parallel import COMPUTE_DTYPES, DataParallel, shard_model
from megalite.engine.guests import GuestOptions, add_guests
from megalite.engine.initial import initialise
from megalite.engine.layout import Demand, check_layout
from megalite.engine.lora import NO_LORA, LoRAConfig, adapt
from megalite.engine.model import Model
from megalite.engine.pipeline import Pipeline
from megalite.engine.recompute import Recompute
from megalite.engine.whole import Whole
from megalite.models.config import ModelConfig
from megalite.models.transformer import Transformer


@dataclass(frozen=True)
class BuildOptions:
    """What a model may have besides.

    Attributes:
        compiled: whether PyTorch compiles the blocks.
        lora: adapters, which alone learn; of rank 0: none.
        guests: models that have its frozen weights; see :class:`megalite.engine.guests.Guest`.
    """

    compiled: bool = False
    lora: LoRAConfig = NO_LORA
    guests: Sequence[GuestOptions] = ()


PLAIN = BuildOptions()


def build_model(
    config: ModelConfig,
    mesh: Mesh,
    parallel: ParallelConfig,
    *,
    seed: int,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    options: BuildOptions = PLAIN,
) -> Model:
    """Build this process's share of a model, with its initial values.

    Args:
        config: shape of the model.
        mesh: from :func:`megalite.distributed.mesh.build_mesh`.
        parallel: the layout.
        seed: of the initial values.
        precision: of compute; parameters are fp32, but for those that adapters keep frozen.
        options: whether PyTorch compiles the blocks, and adapters.

    Raises:
        ConfigError: the layout doesn't fit the model, or it can't be compiled.
    """
    check_layout(Demand(config), parallel)
    if options.compiled:
        check_compiles(config, parallel, mesh.device)
    how = DataParallel(
        precision, parallel.reshard_after_forward, parallel.reduce_gradients == "each"
    )
    recompute = Recompute(parallel.recompute, parallel.recompute_blocks)
    parts = []
    for share in parts_of(config, parallel)[mesh.pp.rank :: mesh.pp.size]:
        part = Transformer(config, mesh, share)
        if options.lora.rank or options.lora.form:
            adapt(part, options.lora, COMPUTE_DTYPES[precision])
        add_guests(part, options.guests, COMPUTE_DTYPES[precision])
        recompute.apply_to(part)
        if options.compiled:
            compile_blocks(part)
        shard_model(part, mesh, how)
        initialise(part, seed)
        parts.append(part)
    if mesh.pp.size == 1:
        return Whole(parts, mesh, how, options.lora)
    return Pipeline(parts, mesh, how, parallel.schedule, options.lora)
