"""Build a model for a layout: cut, sharded, recomputing, then filled."""

from typing import Literal

from megalite.errors import ConfigError
from megalite.models.config import ModelConfig
from megalite.models.initial import initialise
from megalite.models.part import Part, cut
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
    check_layout(config, parallel)
    how = DataParallel(precision, parallel.reshard_after_forward)
    recompute = Recompute(parallel.recompute, parallel.recompute_blocks)
    stages = []
    for part in _own_parts(config, mesh, parallel):
        stage = Transformer(config, mesh, part=part, seed=None)
        stage.set_recompute(recompute)
        shard_model(stage, mesh, how)
        initialise(stage, seed)
        stages.append(stage)
    if mesh.pp.size == 1:
        return stages[0]
    return Pipeline(stages, mesh, parallel.schedule, precision)


def check_layout(config: ModelConfig, parallel: ParallelConfig) -> None:
    """Refuse a layout that this model can't have.

    Raises:
        ConfigError: it says which number to change.
    """
    blocks = config.num_encoder_layers + config.num_layers
    parts = parallel.pp * parallel.chunks_per_rank
    if parts > blocks:
        fits = [n for n in range(1, blocks + 1) if n * parallel.chunks_per_rank <= blocks]
        raise ConfigError(
            f"--parallel.pp {parallel.pp}: {parts} stages need at least {parts} blocks; this "
            f"model has {blocks}: use {_or(fits[-3:][::-1])}"
        )
    if parallel.tp > config.num_heads:
        raise ConfigError(
            f"--parallel.tp {parallel.tp}: must be at most num_heads, {config.num_heads}: "
            f"use {config.num_heads} or less"
        )
    if (parallel.chunks_per_rank > 1) != (parallel.schedule == "interleaved"):
        raise ConfigError(
            f"--parallel.chunks_per_rank {parallel.chunks_per_rank}: must be at least 2 with the "
            f"interleaved schedule and 1 with others; schedule is {parallel.schedule}"
        )


def _or(numbers: list[int]) -> str:
    texts = [str(number) for number in numbers]
    if len(texts) < 2:
        return "".join(texts)
    return ", ".join(texts[:-1]) + " or " + texts[-1]


def _own_parts(config: ModelConfig, mesh: Mesh, parallel: ParallelConfig) -> list[Part]:
    if mesh.pp.size == 1:
        return [Part.whole(config)]
    parts = cut(config, mesh.pp.size * parallel.chunks_per_rank)
    return parts[mesh.pp.rank :: mesh.pp.size]
