"""What a run is, in a few lines that stand before its first step."""

from collections.abc import Sequence
from typing import Any

import torch

from megalite.config.section import Section
from megalite.distributed.mesh import Mesh
from megalite.models.config import ModelConfig
from megalite.models.size import num_parameters


def overview(config: Any, mesh: Mesh, models: Sequence[tuple[str, ModelConfig]]) -> list[str]:
    """Models, start, devices, batch and length of a run, a line each.

    Args:
        config: of the run's stage, with everything chosen.
        mesh: the processes that hold the models.
        models: the names and shapes of those that learn.
    """
    start = config.checkpoint.start
    lines = {
        **{name: _model(model) for name, model in models},
        "start": start or f"initial values of seed {config.run.seed}",
        "devices": _devices(config, mesh),
        "batch": _batch(config),
        "run": f"{config.stage}, {config.train.steps:,} steps, in {config.run.folder}",
    }
    width = max(map(len, lines))
    return [f"{name:<{width}}  {text}" for name, text in lines.items()]


def _model(model: ModelConfig) -> str:
    blocks = f"{model.num_layers} blocks"
    if model.num_encoder_layers:
        blocks = f"{model.num_encoder_layers} + {blocks}"
    return (
        f"{num_parameters(model):,} parameters: {blocks} of width {model.hidden_size:,}, "
        f"vocabulary {model.vocab_size:,}"
    )


def _devices(config: Any, mesh: Mesh) -> str:
    count, parallel = mesh.world.size, config.parallel
    kind = "CPU" if mesh.device.type == "cpu" else torch.cuda.get_device_name(mesh.device)
    processes = f"{count} processes" if count > 1 else "1 process"
    sizes = {"pp": mesh.pp.size, "shard": parallel.shard, "tp": mesh.tp.size}
    sizes["replicate"] = count // (sizes["pp"] * sizes["shard"] * sizes["tp"])
    layout = ", ".join(f"{name} {size}" for name, size in sizes.items() if size > 1)
    more = [layout] if layout else []
    more += ["sequence parallel"] if parallel.sequence_parallel else []
    return ", ".join([f"{processes} on {kind}", config.train.precision, *more])


def _batch(config: Any) -> str:
    samples, at_once = config.train.global_batch_size, config.train.micro_batch_size
    first = config.train.ramp.sizes[0]
    sizes = f"{samples:,}" if first == samples else f"{first:,} to {samples:,}"
    text = f"{sizes} samples a step, {at_once:,} at once in a process"
    most = samples * _length(config)
    return f"{text}, {most:,} tokens at most" if most else text


def _length(config: Any) -> int:
    """Rows of a sample's longest stream; 0 where its stage has none of its own."""
    data: Section | None = getattr(config, "data", None)
    return int(getattr(data, "sequence_length", 0))
