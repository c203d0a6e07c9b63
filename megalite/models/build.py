"""Build a model for a layout: cut, sharded, recomputing, then filled."""

from typing import Literal

from megalite.models.config import ModelConfig
from megalite.models.initial import initialise
from megalite.models.layout import Demand, check_layout
from megalite.models.part import parts_of
from megalite.models.recompute import Recompute
from megalite.models.transformer import Transformer
from megalite.parallel.data_parallel import DataParallel, shard_model
from megalite.parallel.mesh import Mesh, ParallelConfig
from megalite.parallel.pipeline import Pipeline

Model = Transformer | Pipeline


def build_model(
    config: ModelConfig,
    mesh: Mesh,
    parallel: ParallelConfig,
    *,
    seed: int,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
) -> Model:
    """Build this process's share of a model, with its initial values.

    Args:
        config: shape of the model.
        mesh: from :func:`megalite.parallel.mesh.build_mesh`.
        parallel: the layout.
        seed: of the initial values.
        precision: of compute; parameters are fp32.

    Returns:
        A Transformer, or a Pipeline where ``mesh.pp`` has several processes. Both have
        ``named_parameters()`` under the same names.

    Raises:
        ConfigError: the layout doesn't fit the model.
    """
    check_layout(Demand(config), parallel)
    how = DataParallel(precision, parallel.reshard_after_forward)
    recompute = Recompute(parallel.recompute, parallel.recompute_blocks)
    stages = []
    for part in parts_of(config, parallel)[mesh.pp.rank :: mesh.pp.size]:
        stage = Transformer(config, mesh, part=part, seed=None)
        stage.set_recompute(recompute)
        shard_model(stage, mesh, how)
        initialise(stage, seed)
        stages.append(stage)
    if mesh.pp.size == 1:
        return stages[0]
    return Pipeline(stages, mesh, parallel.schedule, precision)


def recomputed_blocks(config: ModelConfig, parallel: ParallelConfig) -> tuple[int, int]:
    """Encoder and decoder blocks, over all stages, whose whole forward pass is made again."""
    if parallel.recompute != "full":
        return 0, 0
    recompute = Recompute(parallel.recompute, parallel.recompute_blocks)
    parts = parts_of(config, parallel)

    def covered(blocks: tuple[int, int]) -> int:
        return sum(recompute.covers(number) for number in range(blocks[1] - blocks[0]))

    return sum(covered(part.encoder) for part in parts), sum(covered(p.decoder) for p in parts)
